"""Makers of tiny random checkpoints: any dtype, odd shapes, any sharding, with side files."""

from __future__ import annotations

import contextlib
import io
import json
import random
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.raw import write_in_order

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]

INDEX = "model.safetensors.index.json"
ODD_SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (0,),
    (3, 0, 5),
    (7,),
    (1, 1, 1),
    (129, 33),
    (64, 64),
    (2, 3, 5, 7),
    (100_003,),
)
TEXT_SIDE_FILES: Mapping[str, str] = {
    "generation_config.json": '{"do_sample": false}\n',
    "tokenizer.json": '{"version": "1.0"}\n',
    "tokenizer_config.json": '{"model_max_length": 128}\n',
    "special_tokens_map.json": '{"unk_token": "[UNK]"}\n',
    "vocab.txt": "[UNK]\nhello\n",
    "chat_template.jinja": "{{ messages }}\n",
    "preprocessor_config.json": '{"size": 8}\n',
    "LICENSE": "Do as you like.\n",
}


def rng(seed: int) -> torch.Generator:
    """A generator of its own, so that no test depends on another's draws."""
    return torch.Generator().manual_seed(seed)


def random_tensor(shape: Sequence[int], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal floats (of scale 1/32, like weights), small integers, or coin flips."""
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=rng(seed)).bool()
    if not dtype.is_floating_point:
        return torch.randint(0, 100, shape, generator=rng(seed)).to(dtype)
    return (torch.randn(shape, generator=rng(seed), dtype=torch.float64) / 32).to(dtype)


def random_tensors(
    seed: int,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    shapes: Sequence[tuple[int, ...]] = ODD_SHAPES,
) -> Tensors:
    """One tensor for each dtype and shape; integers and bools do not depend on the seed."""
    tensors: Tensors = {}
    for d, dtype in enumerate(dtypes):
        for s, shape in enumerate(shapes):
            own_seed = seed * 10_007 + d * 101 + s if dtype.is_floating_point else d * 101 + s
            name = f"block.{s}.{str(dtype).removeprefix('torch.')}"
            tensors[name] = random_tensor(shape, dtype, own_seed)
    return tensors


def like(tensors: Tensors, seed: int, scale: float = 0.01) -> Tensors:
    """A fine-tune: floats moved by small normal steps relative to their spread."""
    tuned: Tensors = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        if not tensor.dtype.is_floating_point:
            tuned[name] = tensor.clone()
            continue
        step = torch.randn(tensor.shape, generator=rng(seed * 7919 + i), dtype=torch.float64)
        tuned[name] = (tensor.double() + step * scale / 32).to(tensor.dtype)
    return tuned


def write_checkpoint(
    folder: Path,
    tensors: Tensors,
    *,
    shards: int = 1,
    file_name: str = "model.safetensors",
    shuffle: int | None = None,
    config: Config | None = None,
) -> Path:
    """Write a folder with one file, or with `shards` files and an index; perhaps in odd order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    if shuffle is not None:
        random.Random(shuffle).shuffle(names)
    if config is not None:
        write_json(folder / "config.json", config)
    if shards == 1:
        _write_file(folder / file_name, tensors, names, shuffle)
        return folder
    weight_map: dict[str, str] = {}
    for i in range(shards):
        own = names[i::shards]
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        _write_file(folder / shard, tensors, own, shuffle)
        weight_map.update(dict.fromkeys(own, shard))
    write_index(folder, weight_map, sum(t.nbytes for t in tensors.values()))
    return folder


def _write_file(path: Path, tensors: Tensors, names: list[str], shuffle: int | None) -> None:
    if shuffle is None:
        save_file({n: tensors[n] for n in names}, path, metadata={"format": "pt"})
    else:
        write_in_order(path, tensors, names)


def write_index(folder: Path, weight_map: Mapping[str, Any], total_size: int = 0) -> Path:
    """Write an index; the map may lie."""
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(weight_map)}
    return write_json(folder / INDEX, index)


def write_json(path: Path, value: Any) -> Path:
    """Write JSON as Hugging Face does: indented, with a newline at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n")
    return path


def read_checkpoint(folder: Path) -> Tensors:
    """Every tensor of a folder, by the safetensors library."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def add_side_files(folder: Path, config: Config | None = None) -> Path:
    """Lay a config, a tokenizer and their like beside the weights."""
    for name, text in TEXT_SIDE_FILES.items():
        (folder / name).write_text(text)
    write_json(folder / "config.json", config or {"model_type": "toy", "dtype": "bfloat16"})
    return folder


def tiny_llama(
    folder: Path, seed: int, *, tied: bool, dtype: torch.dtype = torch.bfloat16, vocab: int = 64
) -> Path:
    """A real Llama of a few thousand parameters, written by transformers itself."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocab,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder
