"""Short ways to run a merge in a test, and to see afterwards what it did to the disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.errors import StreammergeError
from tests.support.checkpoints import Tensors, read_checkpoint, write_checkpoint
from tests.support.reference import exact_mean, float64_mean, ulps_apart, wrong_elements

SIZES = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9, "B": 1}
Snapshot = dict[str, tuple[int, str]]


def write_all(folder: Path, models: Sequence[Tensors], **layout: Any) -> list[Path]:
    """Write each model as folder/m0, folder/m1, …"""
    return [write_checkpoint(folder / f"m{i}", m, **layout) for i, m in enumerate(models)]


def merge(folder: Path, models: Sequence[Tensors], **options: Any) -> Tensors:
    """Write the models, average them, and read the result back with safetensors."""
    return merge_paths(write_all(folder, models), folder / "out", **options)


def merge_paths(paths: Sequence[Path], out: Path, **options: Any) -> Tensors:
    """Average checkpoints that exist, and read the result back with safetensors."""
    streammerge.average([str(p) for p in paths], str(out), **options)
    return read_checkpoint(out)


def assert_exact(
    found: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    weights: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Every element is the exact weighted mean rounded once (float64: as the design states)."""
    wanted = dtype or inputs[0].dtype
    if wanted == torch.float64:
        expected = float64_mean(inputs)
    else:
        expected = exact_mean(inputs, weights, wanted)
    assert (found.dtype, found.shape) == (wanted, inputs[0].shape)
    wrong = wrong_elements(found, expected)
    assert wrong == 0, (
        f"{wrong} of {found.numel()} elements of {wanted} are not the exact mean of "
        f"{len(inputs)} rounded once (weights {weights}); at most {ulps_apart(found, expected)} "
        f"ulp off; first: {_first_wrong(found, expected, inputs)}"
    )


def _first_wrong(
    found: torch.Tensor, expected: torch.Tensor, inputs: Sequence[torch.Tensor]
) -> str:
    flat = [t.reshape(-1) for t in (found, expected, *inputs)]
    differs = (flat[0] != flat[1]) | (flat[0].signbit() != flat[1].signbit())
    at = int(differs.nonzero()[0]) if bool(differs.any()) else 0
    got, want, *given = (float(t[at]).hex() for t in flat)
    return f"[{at}] {got}, should be {want}, inputs {given}"


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    """The same names, dtypes, shapes and bytes; the order may differ."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        ours, theirs = (t.reshape(-1).view(torch.uint8) for t in (found[name], tensor))
        assert torch.equal(ours, theirs), name


def snapshot(*folders: Path) -> Snapshot:
    """Modification time and digest of every file, and modification time of every folder."""
    seen: Snapshot = {}
    for folder in folders:
        for path in (folder, *sorted(folder.rglob("*"))):
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            seen[str(path)] = (path.lstat().st_mtime_ns, digest)
    return seen


def refusal(run: Callable[[], object], *patterns: str) -> str:
    """Run what must be refused; its message matches every pattern. Returns the message.

    pytest names the folders after the tests, so these are cut from the message before it is read.
    """
    with pytest.raises(StreammergeError) as caught:
        run()
    message = without_test_folders(str(caught.value))
    for pattern in patterns:
        assert re.search(pattern, message, re.I), f"no {pattern!r} in the message: {message}"
    assert "Traceback" not in message
    return message


def without_test_folders(message: str) -> str:
    """Cut the path of a test's own folder, whose name would match too much."""
    return re.sub(r"[^\s'\"]*/pytest-\d+/[^/\s'\"]+", "", message)


def assert_nothing_like_a_model(out: Path) -> None:
    """After a failure OUT is missing, or holds nothing that a loader would take."""
    left = [p for p in out.rglob("*") if p.is_file()] if out.exists() else []
    tempting = [p.name for p in left if p.suffix in {".safetensors", ".bin"} or "index" in p.name]
    assert not tempting, f"OUT holds what may be taken for a model: {tempting}"


def assert_untouched(out: Path) -> None:
    """After an early refusal OUT is missing or empty."""
    left = sorted(p.name for p in out.iterdir()) if out.exists() else []
    assert not left, f"OUT holds {left}"


def sizes_in(message: str) -> list[int]:
    """Every size that a message names, in bytes."""
    found = re.findall(r"(\d[\d,]*(?:\.\d+)?)\s*([KMG]i?B|B)\b", message, re.I)
    return [int(float(n.replace(",", "")) * SIZES[unit.upper()]) for n, unit in found]
