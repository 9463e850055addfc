"""What is no plain safetensors checkpoint: refused with the reason and the remedy, never opened."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.attacks import Trap, victim, victim_data
from tests.support.checkpoints import write_checkpoint, write_index, write_json
from tests.support.raw import entry, write_raw

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 4976698672\n"
)


class Bomb:
    """Leaves a file named pwned if anything unpickles it."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


def bomb(trap: Trap, file: Path) -> Path:
    file.write_bytes(pickle.dumps(Bomb(trap.root / "pwned")))
    return file


def test_git_lfs_pointer_in_place_of_the_model(trap: Trap) -> None:
    (trap.bad / "model.safetensors").write_text(LFS_POINTER)
    trap.refused(r"model\.safetensors", "lfs")


def test_git_lfs_pointer_in_place_of_a_shard(trap: Trap) -> None:
    write_checkpoint(trap.bad, victim(), shards=2)
    (trap.bad / "model-00002-of-00002.safetensors").write_text(LFS_POINTER)
    trap.refused("model-00002-of-00002", "lfs")


def test_git_lfs_pointer_in_place_of_the_index(trap: Trap) -> None:
    write_checkpoint(trap.bad, victim(), shards=2)
    (trap.bad / "model.safetensors.index.json").write_text(LFS_POINTER)
    trap.refused(r"index\.json")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "checkpoint.pkl"]
)
def test_pickle_is_never_opened(trap: Trap, name: str) -> None:
    bomb(trap, trap.bad / name)
    trap.refused(name.replace(".", r"\."), "pickle", "safe|convert")
    trap.refused(name.replace(".", r"\."), "pickle", "safe|convert", bad=trap.bad / name)


def test_pickle_under_the_name_of_a_safetensors_file_is_never_opened(trap: Trap) -> None:
    bomb(trap, trap.bad / "model.safetensors")
    trap.refused(r"model\.safetensors")


def test_torch_archive_under_the_name_of_a_safetensors_file(trap: Trap) -> None:
    torch.save(victim(), trap.bad / "model.safetensors")
    assert zipfile.is_zipfile(trap.bad / "model.safetensors")
    trap.refused(r"model\.safetensors")


def test_sharded_pickles(trap: Trap) -> None:
    bomb(trap, trap.bad / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin"}}
    write_json(trap.bad / "pytorch_model.bin.index.json", index)
    trap.refused("pickle", "safe|convert")


def test_index_that_names_a_pickle(trap: Trap) -> None:
    bomb(trap, trap.bad / "pytorch_model.bin")
    write_index(trap.bad, dict.fromkeys(victim(), "pytorch_model.bin"))
    trap.refused(r"pytorch_model\.bin")


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_gguf_whatever_its_name(trap: Trap, name: str) -> None:
    (trap.bad / name).write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(200))
    patterns = ("gguf", "convert") if name.endswith("gguf") else (r"model\.safetensors",)
    trap.refused(*patterns)
    trap.refused(*patterns, bad=trap.bad / name)


@pytest.mark.parametrize("config", [True, False], ids=["with config", "without config"])
def test_peft_adapter(trap: Trap, config: bool) -> None:
    tensors = {
        "base_model.model.q_proj.lora_A.weight": torch.ones(2, 4),
        "base_model.model.q_proj.lora_B.weight": torch.ones(4, 2),
    }
    save_file(tensors, trap.bad / "adapter_model.safetensors")
    if config:
        write_json(trap.bad / "adapter_config.json", {"peft_type": "LORA", "r": 2})
    trap.refused("adapter", r"`base\+adapter`")


def test_merging_only_adapters_is_refused_too(trap: Trap) -> None:
    tensors = {"m.q_proj.lora_A.weight": torch.ones(2, 4), "m.q_proj.lora_B.weight": torch.ones(4)}
    for folder in (trap.bad, trap.root / "good2"):
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2})
    trap.good = trap.root / "good2"
    trap.refused("adapter")


def both_quantized(trap: Trap, tensors: dict[str, torch.Tensor]) -> None:
    """Both inputs alike: nothing but the quantization stands in the way."""
    for folder in (trap.bad, trap.root / "good2"):
        write_checkpoint(folder, tensors)
    trap.good = trap.root / "good2"


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantized_by_its_config(trap: Trap, key: str, method: str) -> None:
    write_checkpoint(
        trap.bad, victim(), config={"model_type": "toy", key: {"quant_method": method}}
    )
    trap.refused("quantiz")


@pytest.mark.parametrize("name", ["quantize_config", "quant_config", "hf_quant_config"])
def test_quantized_by_a_file_beside_the_weights(trap: Trap, name: str) -> None:
    write_checkpoint(trap.bad, victim())
    write_json(trap.bad / f"{name}.json", {"bits": 4})
    trap.refused("quantiz")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_quantized_by_eight_bit_floats(trap: Trap, dtype: torch.dtype) -> None:
    both_quantized(trap, victim() | {"c.weight": torch.ones(4, 4).to(dtype)})
    trap.refused(r"c\.weight", "quantiz")


@pytest.mark.parametrize("code", ["F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3"])
def test_quantized_by_a_small_float_of_safetensors(trap: Trap, code: str) -> None:
    bits = {"F4": 4, "F6": 6}.get(code[:2], 8)
    size = 64 * bits // 8
    header = {
        "a.weight": entry("F32", [2, 4], 0, 32),
        "b.weight": entry("F32", [4], 32, 48),
        "c.weight": entry(code, [8, 8], 48, 48 + size),
    }
    trap.good = trap.root / "good2"
    for folder in (trap.bad, trap.good):
        write_raw(folder / "model.safetensors", header, victim_data() + bytes(size))
    trap.refused(r"c\.weight", "quantiz")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int8], ids=str)
def test_quantized_by_packed_integer_weights(trap: Trap, dtype: torch.dtype) -> None:
    both_quantized(trap, victim() | {"layer.weight": torch.ones(16, 16, dtype=dtype)})
    trap.refused(r"layer\.weight", "quantiz")


@pytest.mark.parametrize(
    "names",
    [
        ["weight_scale_inv"],
        ["weight_scale"],
        ["weight_packed"],
        ["qweight"],
        ["qzeros"],
        ["weight.absmax"],
        ["SCB"],
        ["down_proj_blocks", "down_proj_scales"],
    ],
    ids=str,
)
def test_quantized_by_the_names_of_scales(trap: Trap, names: list[str]) -> None:
    both_quantized(trap, victim() | {f"layer.0.{name}": torch.ones(4, 4) for name in names})
    trap.refused(r"layer\.0\." + names[0].replace(".", r"\."), "quantiz")


@pytest.mark.timeout(20)
def test_named_pipe_in_place_of_the_model_does_not_hang(trap: Trap) -> None:
    os.mkfifo(trap.bad / "model.safetensors")
    trap.refused(r"model\.safetensors")


@pytest.mark.timeout(20)
def test_device_in_place_of_the_model_does_not_fill_memory(trap: Trap) -> None:
    (trap.bad / "model.safetensors").symlink_to("/dev/zero")
    trap.refused(r"model\.safetensors")


def test_folder_in_place_of_the_model(trap: Trap) -> None:
    (trap.bad / "model.safetensors").mkdir()
    trap.refused("bad")


def test_dangling_link_in_place_of_the_model(trap: Trap) -> None:
    (trap.bad / "model.safetensors").symlink_to(trap.root / "gone")
    trap.refused("bad")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000], ids=lambda t: t[:5])
def test_config_that_is_no_json_object(trap: Trap, text: str) -> None:
    write_checkpoint(trap.bad, victim())
    (trap.bad / "config.json").write_text(text)
    trap.refused(r"config\.json")
