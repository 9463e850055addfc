"""Random checkpoints of any size, laid out as a Hugging Face Llama, for benchmarks only.

    python -m benchmarks.data /tmp/model --size 1GB --shards 4 --dtype bf16 --seed 1

The values look like weights, N(0, 0.02) and not zero: a file system that compresses or skips
zeros would flatter us. Models of one family are fine-tunes of one base, 5 % away from it, as those
that people merge, or as far as `--distance` says (0 is the base itself); a family of its own makes
a model a stranger. The values are streamed, so that 100 GB take no more memory than 1 GB: one block
is drawn once, and each piece of a tensor is some stretch of it, the same for the whole family, with
the lowest bits flipped at random where models are far enough apart. The files are, byte for byte,
what `safetensors.torch.save_file` writes for the same tensors.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.units import gigabytes, parse_size

Bytes = npt.NDArray[np.uint8]
_BLOCK = 64 * 2**20
_PIECE = 16 * 2**20
_SPREAD = 0.02
_DISTANCE = 0.05  # of a fine-tune from its base, relative
_FLIPPED = 0.02  # flipping the lowest bits of a bf16 moves it by about 1 %: too far for less


@dataclass(frozen=True)
class Kind:
    """A dtype: its names in safetensors and in config.json, and which lowest bits may flip."""

    code: str
    torch_name: str
    size: int
    lowest: int


KINDS = {
    "bf16": Kind("BF16", "bfloat16", 2, 0x0003_0003_0003_0003),
    "fp16": Kind("F16", "float16", 2, 0x001F_001F_001F_001F),
    "fp32": Kind("F32", "float32", 4, 0x0003_FFFF_0003_FFFF),
}


@dataclass(frozen=True)
class Llama:
    """The sizes that a Llama's tensors follow from."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    tied: bool

    @property
    def head(self) -> int:
        return min(128, self.hidden // 4)

    @property
    def key_value(self) -> int:
        return max(self.head, self.hidden // 4 // self.head * self.head)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the model."""
        h, i, kv = self.hidden, self.intermediate, self.key_value
        yield "model.embed_tokens.weight", (self.vocabulary, h)
        for layer in range(self.layers):
            yield f"model.layers.{layer}.self_attn.q_proj.weight", (h, h)
            yield f"model.layers.{layer}.self_attn.k_proj.weight", (kv, h)
            yield f"model.layers.{layer}.self_attn.v_proj.weight", (kv, h)
            yield f"model.layers.{layer}.self_attn.o_proj.weight", (h, h)
            yield f"model.layers.{layer}.mlp.gate_proj.weight", (i, h)
            yield f"model.layers.{layer}.mlp.up_proj.weight", (i, h)
            yield f"model.layers.{layer}.mlp.down_proj.weight", (h, i)
            yield f"model.layers.{layer}.input_layernorm.weight", (h,)
            yield f"model.layers.{layer}.post_attention_layernorm.weight", (h,)
        yield "model.norm.weight", (h,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, h)

    def config(self, kind: Kind) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.key_value // self.head,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": kind.torch_name,
        }


def design(parameters: int, largest: int | None = None) -> Llama:
    """A Llama of about so many parameters whose embedding has at least `largest` elements."""
    for hidden in (8192, 4096, 3072, 2048, 1024, 512, 256, 128, 64):
        wished = largest / hidden if largest else min(32_000, parameters * 0.15 / hidden)
        vocabulary = math.ceil(wished / 64) * 64
        # An output head as large as the embedding, unless both would be most of the model.
        tied = 2 * vocabulary * hidden > 0.6 * parameters
        rest = parameters - (1 if tied else 2) * vocabulary * hidden
        layers = round(rest / (13 * hidden**2))  # 13 h²: a layer whose MLP is 3.5 h wide
        if layers >= 12:
            break
    layers = max(1, layers)
    plain = Llama(hidden, 0, layers, vocabulary, tied)
    attention = 2 * hidden * (hidden + plain.key_value)
    intermediate = max(16, round((rest / layers - attention) / (3 * hidden) / 16) * 16)
    return Llama(hidden, intermediate, layers, vocabulary, tied)


class _Noise:
    """Endless pieces of weights, each another, at the speed of XOR."""

    def __init__(self, kind: Kind, seed: int, family: int, distance: float) -> None:
        self._family, own = np.random.default_rng((family, 0)), np.random.default_rng((seed, 1))
        count = _BLOCK // kind.size
        values = self._family.standard_normal(count, dtype=np.float32)
        values += own.standard_normal(count, dtype=np.float32) * np.float32(distance)
        values *= np.float32(_SPREAD)
        # Tiny numbers stay, as in real weights: a merge that takes care of them must pay for it.
        values = np.copysign(np.maximum(np.abs(values), np.float32(1e-7)), values)
        self._weights = _encode(values, kind)
        bits = own.integers(0, 2**64, _BLOCK // 8, dtype=np.uint64)
        lowest = kind.lowest if distance >= _FLIPPED else 0
        self._flips: Bytes = (bits & np.uint64(lowest)).view(np.uint8)

    def pieces(self, length: int) -> Iterator[Bytes]:
        while length > 0:
            size = min(length, _PIECE)
            weights, flips = self._stretch(self._weights, size), self._stretch(self._flips, size)
            yield np.bitwise_xor(weights, flips)
            length -= size

    def _stretch(self, block: Bytes, size: int) -> Bytes:
        start = int(self._family.integers(0, (_BLOCK - size) // 8 + 1)) * 8
        return block[start : start + size]


def _encode(values: npt.NDArray[np.float32], kind: Kind) -> Bytes:
    if kind.code == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    return values.astype(np.float16 if kind.code == "F16" else np.float32).view(np.uint8)


def make_checkpoint(
    folder: Path,
    size: int,
    *,
    shards: int = 1,
    dtype: str = "bf16",
    largest: int | None = None,
    seed: int = 0,
    family: int = 0,
    distance: float = _DISTANCE,
) -> Path:
    """Write a checkpoint of about `size` bytes, its largest tensor of at least `largest`."""
    kind = KINDS[dtype]
    model = design(size // kind.size, largest // kind.size if largest else None)
    tensors = {name: math.prod(shape) * kind.size for name, shape in model.tensors()}
    shapes = dict(model.tensors())
    folder.mkdir(parents=True)
    noise = _Noise(kind, seed, family, distance)
    weight_map: dict[str, str] = {}
    parts = _split(tensors, shards)
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        file = "model.safetensors" if len(parts) == 1 else file
        _write_shard(folder / file, {name: shapes[name] for name in sorted(names)}, kind, noise)
        weight_map |= dict.fromkeys(names, file)
    if len(parts) > 1:
        total = sum(tensors.values())
        metadata = {"total_parameters": total // kind.size, "total_size": total}
        index = {"metadata": metadata, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", model.config(kind))
    return folder


def _split(tensors: dict[str, int], shards: int) -> list[list[str]]:
    """Tensors in order, cut where the next would pass its share of the bytes."""
    share = sum(tensors.values()) / shards
    parts: list[list[str]] = [[]]
    filled = 0
    for name, size in tensors.items():
        if parts[-1] and filled + size / 2 > share * len(parts) and len(parts) < shards:
            parts.append([])
        parts[-1].append(name)
        filled += size
    return parts


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]], kind: Kind, noise: _Noise) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * kind.size
        header[name] = {"dtype": kind.code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            for piece in noise.pieces(math.prod(shape) * kind.size):
                file.write(piece.data)
        os.fsync(file.fileno())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=parse_size, default="1GB")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--dtype", choices=KINDS, default="bf16")
    parser.add_argument("--largest", type=parse_size, help="least size of the largest tensor")
    parser.add_argument("--seed", type=int, default=0, help="of this model")
    parser.add_argument("--family", type=int, default=0, help="seed of the base it stems from")
    parser.add_argument("--distance", type=float, default=_DISTANCE, help="from that, relative")
    args = parser.parse_args()
    make_checkpoint(**vars(args))  # the options are its parameters
    written = sum(file.stat().st_size for file in args.folder.iterdir())
    print(f"{args.folder}: {gigabytes(written)}")


if __name__ == "__main__":
    main()
