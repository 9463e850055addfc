"""The same bits on a GPU as on the CPU; runs where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import streammerge
from tests.support.checkpoints import like, random_tensors
from tests.support.merging import refusal, write_all

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("weights", [None, (0.7, 0.2, 0.1), (0.123456789, 1.0, 3.3)], ids=str)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_cuda_gives_the_bytes_of_the_cpu(
    tmp_path: Path, weights: tuple[float, ...] | None, dtype: str
) -> None:
    first = random_tensors(1, DTYPES)
    paths = [str(p) for p in write_all(tmp_path, [first, like(first, 2), like(first, 3)])]
    for device in ("cpu", "cuda"):
        out = str(tmp_path / device)
        streammerge.average(paths, out, weights=weights, dtype=dtype, device=device)
    cpu, cuda = ((tmp_path / d / "model.safetensors").read_bytes() for d in ("cpu", "cuda"))
    assert cpu == cuda


@pytest.mark.parametrize("device", ["cuda:99", "mps:7", "meta", "xpu"])
def test_a_device_that_is_not_there_is_refused_by_name(tmp_path: Path, device: str) -> None:
    models = [{"w": torch.ones(4)}] * 2
    paths = [str(p) for p in write_all(tmp_path, models)]
    refusal(lambda: streammerge.average(paths, str(tmp_path / "out"), device=device), device)
    assert not (tmp_path / "out").exists()
