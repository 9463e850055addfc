"""What is found only while merging fails by name and leaves nothing that looks like a model."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from tests.support.checkpoints import (
    Tensors,
    like,
    random_tensors,
    read_checkpoint,
    write_checkpoint,
)
from tests.support.merging import assert_nothing_like_a_model, refusal, snapshot, write_all
from tests.support.reference import wrong_elements

BF16 = torch.bfloat16
SEVERAL_SHARDS = {"max_shard_size": "100KB"}


def fails(paths: list[Path], out: Path, *patterns: str, **options: Any) -> str:
    """Fails with a message that matches; inputs untouched, nothing like a model in OUT."""
    before = snapshot(*paths)
    message = refusal(
        lambda: streammerge.average([str(p) for p in paths], str(out), **options), *patterns
    )
    assert snapshot(*paths) == before
    assert_nothing_like_a_model(out)
    beside = [p.name for p in out.parent.iterdir() if p != out and p not in paths]
    assert not [name for name in beside if "out" in name], f"left beside OUT: {beside}"
    return message


def pair_with(last: torch.Tensor, other: torch.Tensor) -> list[Tensors]:
    first = random_tensors(1)
    return [first | {"zzz.last": last}, like(first, seed=2) | {"zzz.last": other}]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_integer_tensors_that_differ_late_in_the_merge(tmp_path: Path, dtype: torch.dtype) -> None:
    last = torch.zeros(70_001, dtype=dtype)
    other = last.clone()
    other[-1] = 1
    paths = write_all(tmp_path, pair_with(last, other))
    fails(paths, tmp_path / "out", r"zzz\.last", "m0", "m1", "--keep|--skip", **SEVERAL_SHARDS)


def test_integer_tensors_that_differ_can_be_kept_from_the_first(tmp_path: Path) -> None:
    paths = write_all(tmp_path, pair_with(torch.zeros(5).long(), torch.ones(5).long()))
    names = [str(p) for p in paths]
    streammerge.average(names, str(tmp_path / "out"), keep=["zzz.*"])
    assert read_checkpoint(tmp_path / "out")["zzz.last"].tolist() == [0] * 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("place", [0, 1])
def test_nan_and_inf_in_an_input_are_refused(
    tmp_path: Path, bad: float, dtype: torch.dtype, place: int
) -> None:
    tensors = [torch.ones(70_001, dtype=dtype) for _ in range(2)]
    tensors[place][-3] = bad
    paths = write_all(tmp_path, pair_with(*tensors))
    fails(paths, tmp_path / "out", r"zzz\.last", f"m{place}", "nan|inf|finite", **SEVERAL_SHARDS)


def test_nan_and_inf_pass_where_they_are_allowed(tmp_path: Path) -> None:
    first = torch.tensor([math.nan, math.inf, 1.0, math.inf, -math.inf], dtype=BF16)
    other = torch.tensor([1.0, 2.0, 3.0, -math.inf, -math.inf], dtype=BF16)
    paths = write_all(tmp_path, pair_with(first, other))
    names = [str(p) for p in paths]
    result = streammerge.average(names, str(tmp_path / "out"), allow_nonfinite=True)
    wanted = torch.tensor([math.nan, math.inf, 2.0, math.nan, -math.inf], dtype=BF16)
    assert wrong_elements(read_checkpoint(tmp_path / "out")["zzz.last"], wanted) == 0
    assert result.nonfinite == {"zzz.last": 4}


def test_nan_in_a_model_of_weight_zero_or_a_skipped_tensor_does_no_harm(tmp_path: Path) -> None:
    paths = write_all(tmp_path, pair_with(torch.ones(9), torch.full((9,), math.nan)))
    names = [str(p) for p in paths]
    streammerge.average(names, str(tmp_path / "zero"), weights=[1, 0])
    assert read_checkpoint(tmp_path / "zero")["zzz.last"].tolist() == [1.0] * 9
    streammerge.average(names, str(tmp_path / "skip"), skip=["zzz.*"])
    assert "zzz.last" not in read_checkpoint(tmp_path / "skip")


def test_a_mean_too_large_for_the_output_dtype_is_not_made_inf_in_silence(tmp_path: Path) -> None:
    paths = write_all(tmp_path, pair_with(torch.full((9,), 1e5), torch.full((9,), 1e5)))
    patterns = (r"zzz\.last", "F16|float16", "overflow|range")
    fails(paths, tmp_path / "out", *patterns, dtype="float16")


@pytest.mark.changes_inputs
@pytest.mark.parametrize("io", ["buffered", "direct", "mmap"])
def test_a_file_that_is_cut_after_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, io: str
) -> None:
    """The cut happens when the last step before the data is done: on the first write."""
    paths = write_all(tmp_path, pair_with(torch.ones(3_000_000), torch.zeros(3_000_000)))
    victim = paths[1] / "model.safetensors"
    cut = _cut_on_first_fallocate_or_mkdir(monkeypatch, victim)
    out = tmp_path / "out"
    names = [str(p) for p in paths]
    refusal(lambda: streammerge.average(names, str(out), io=io), r"m1|model\.safetensors")
    assert cut == [True]
    assert_nothing_like_a_model(out)


def _cut_on_first_fallocate_or_mkdir(monkeypatch: pytest.MonkeyPatch, victim: Path) -> list[bool]:
    done: list[bool] = []
    for name in ("mkdir", "posix_fallocate"):
        original = getattr(os, name)

        def cutting(*args: Any, _original: Any = original, **kwargs: Any) -> Any:
            if not done:
                done.append(True)
                os.truncate(victim, victim.stat().st_size - 1_000_000)
            return _original(*args, **kwargs)

        monkeypatch.setattr(os, name, cutting)
    return done


@pytest.mark.parametrize("when", ["first", "middle", "last"])
@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("preadv", errno.EIO),
        ("pwrite", errno.ENOSPC),
        ("posix_fallocate", errno.ENOSPC),
        ("ftruncate", errno.EIO),
        ("fsync", errno.EIO),
        ("rename", errno.EIO),
    ],
)
def test_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, when: str
) -> None:
    paths = write_all(tmp_path, pair_with(torch.ones(300_000), torch.zeros(300_000)))
    names = [str(p) for p in paths]
    options: dict[str, Any] = {"io": "buffered", **SEVERAL_SHARDS}
    calls = _fail_in_call(monkeypatch, function, code, None)
    streammerge.average(names, str(tmp_path / "good"), **options)
    assert calls, f"the package never calls os.{function}: take this case out"
    number = {"first": 0, "middle": len(calls) // 2, "last": len(calls) - 1}[when]
    monkeypatch.undo()
    _fail_in_call(monkeypatch, function, code, number)
    out = tmp_path / "out"
    refusal(lambda: streammerge.average(names, str(out), **options), "out|m0|m1")
    assert_nothing_like_a_model(out)


def _fail_in_call(
    monkeypatch: pytest.MonkeyPatch, function: str, code: int, number: int | None
) -> list[int]:
    """Let one call of an os function fail; count the calls."""
    original, calls = getattr(os, function), list[int]()

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) - 1 == number:
            raise OSError(code, os.strerror(code))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, function, failing)
    return calls


def test_a_failed_overwrite_leaves_no_mix_of_old_and_new(tmp_path: Path) -> None:
    paths = write_all(tmp_path, pair_with(torch.zeros(9).long(), torch.ones(9).long()))
    out = write_checkpoint(tmp_path / "out", {"old.weight": torch.ones(4)}, shards=1)
    before = snapshot(out)
    names = [str(p) for p in paths]
    refusal(lambda: streammerge.average(names, str(out), overwrite=True, **SEVERAL_SHARDS))
    left = read_checkpoint(out) if out.exists() else {}
    assert left.keys() in ({"old.weight"}, set()), f"a mix: {sorted(left)}"
    if left:
        digests = {name: s[1] for name, s in snapshot(out).items() if ".streammerge-" not in name}
        assert digests == {name: seen[1] for name, seen in before.items()}
