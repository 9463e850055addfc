"""What makes no sense is refused before the first output byte, with the reason and the remedy."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from tests.support.checkpoints import Tensors, write_checkpoint
from tests.support.merging import assert_untouched, refusal, sizes_in, snapshot

Run = Callable[..., object]
BOTH = pytest.mark.parametrize(
    "run", [streammerge.average, streammerge.plan_average], ids=["average", "plan"]
)


def layers(count: int, size: int = 4) -> Tensors:
    return {f"layers.{i}.weight": torch.full((size, 2), float(i)) for i in range(count)}


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "a", layers(3), config={"model_type": "toy"})


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "b", layers(3), shards=3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def refused(run: Run, models: list[Path], out: Path, *patterns: str, **options: Any) -> str:
    """Refused with a message that matches; nothing was written anywhere."""
    before = snapshot(*(m for m in models if m.exists()))
    message = refusal(lambda: run([str(m) for m in models], str(out), **options), *patterns)
    assert_untouched(out)
    assert snapshot(*(m for m in models if m.exists())) == before
    assert len(message.strip().splitlines()) >= 2 or len(message) > 40, f"no remedy: {message}"
    return message


@BOTH
@pytest.mark.parametrize("name", ["missing", "empty", "text.txt", "nul\x00"], ids=ascii)
def test_a_path_that_is_no_checkpoint(
    tmp_path: Path, a: Path, out: Path, run: Run, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    message = refusal(lambda: run([str(a), f"{tmp_path}/{name}"], str(out)), name[:3])
    assert "\x00" not in message
    assert_untouched(out)


@BOTH
def test_one_model_is_a_copy(a: Path, out: Path, run: Run) -> None:
    refused(run, [a], out, "two models", r"cp|copy")
    refused(run, [], out, "two models|no models")


@BOTH
def test_every_missing_tensor_is_listed_up_to_ten_and_counted(
    tmp_path: Path, out: Path, run: Run
) -> None:
    full = write_checkpoint(tmp_path / "full", layers(25))
    lacks = write_checkpoint(tmp_path / "lacks", layers(3))
    for models in ([full, lacks], [lacks, full]):
        message = refused(run, models, out, "22 tensors", "lacks", "--skip|skip", "12 more")
        assert message.count("layers.") == 10
    lacks_few = write_checkpoint(tmp_path / "lacks_few", layers(22))
    message = refused(run, [full, lacks_few], out, "3 tensors")
    assert all(f"layers.{i}.weight" in message for i in (22, 23, 24))
    assert " more" not in message


@BOTH
def test_other_shapes_are_listed_with_both_shapes(tmp_path: Path, out: Path, run: Run) -> None:
    small = write_checkpoint(tmp_path / "small", layers(12, size=4))
    large = write_checkpoint(tmp_path / "large", layers(12, size=5))
    message = refused(run, [small, large], out, r"12 tensors", r"\[4, 2\]", r"\[5, 2\]", "2 more")
    assert message.count("layers.") == 10
    assert "small" in message
    assert "large" in message


@BOTH
def test_same_size_but_another_shape(tmp_path: Path, out: Path, run: Run) -> None:
    one = write_checkpoint(tmp_path / "one", {"w": torch.ones(2, 6)})
    two = write_checkpoint(tmp_path / "two", {"w": torch.ones(6, 2)})
    refused(run, [one, two], out, r"\bw\b", r"\[2, 6\]", r"\[6, 2\]")


@BOTH
def test_a_float_cannot_be_merged_with_an_integer(tmp_path: Path, out: Path, run: Run) -> None:
    one = write_checkpoint(tmp_path / "one", {"w": torch.ones(2), "x": torch.ones(1)})
    two = write_checkpoint(tmp_path / "two", {"w": torch.ones(2).long(), "x": torch.ones(1)})
    refused(run, [one, two], out, r"\bw\b", "I64|int64", "F32|float32")


@BOTH
def test_complex_numbers_are_refused_or_merged_never_guessed(
    tmp_path: Path, out: Path, run: Run
) -> None:
    models = [
        write_checkpoint(tmp_path / n, {"w": torch.ones(2) * 1j, "x": torch.ones(1)}) for n in "ab"
    ]
    refused(run, models, out, r"\bw\b")


@BOTH
@pytest.mark.parametrize(
    ("weights", "pattern"),
    [
        ([1.0], "1 weight.* 2 models"),
        ([1, 2, 3], "3 weights .*2 models"),
        ([], "0 weights|no weights"),
        ([0, 0], "zero"),
        ([1, -1], "zero"),
        ([0.1, -0.1], "zero"),
        ([math.nan, 1], "nan"),
        ([math.inf, 1], "inf"),
        ([1, -math.inf], "inf"),
    ],
    ids=str,
)
def test_weights_that_make_no_sense(
    a: Path, b: Path, out: Path, run: Run, weights: list[float], pattern: str
) -> None:
    refused(run, [a, b], out, pattern, weights=weights)


@BOTH
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dtype", "int8"),
        ("dtype", "float99"),
        ("memory", "banana"),
        ("memory", "-1GB"),
        ("memory", "0"),
        ("max_shard_size", "big"),
        ("max_shard_size", "0GB"),
        ("skip", ["nothing.*"]),
        ("keep", ["nothing.*"]),
        ("skip", ["*"]),
        ("keep", ["*"]),
        ("side_files_from", "elsewhere"),
    ],
)
def test_options_that_make_no_sense(
    a: Path, b: Path, out: Path, run: Run, option: str, value: Any
) -> None:
    refused(run, [a, b], out, **{option: value})


@pytest.mark.parametrize(("option", "value"), [("io", "telepathy"), ("device", "abacus")])
def test_ways_to_work_that_are_not_known(
    a: Path, b: Path, out: Path, option: str, value: str
) -> None:
    refused(streammerge.average, [a, b], out, value, **{option: value})


def test_too_little_disk(a: Path, b: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(out.parent))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 7, 7))
    message = refused(streammerge.average, [a, b], out, "disk|space|free")
    assert 7 in sizes_in(message)


def test_too_little_memory_says_the_least_that_works(tmp_path: Path, out: Path) -> None:
    first, second = ({"w": torch.randn(9_000_001).bfloat16()} for _ in range(2))
    models = [write_checkpoint(tmp_path / n, m) for n, m in (("a", first), ("b", second))]
    message = refused(streammerge.average, models, out, "memory", memory="1MiB")
    least = max(sizes_in(message))
    names = [str(m) for m in models]
    refused(streammerge.average, models, out, "memory", memory=str(least - 2**21))
    streammerge.average(names, str(out), memory=str(least))
    streammerge.average(names, str(out.with_name("free")))
    tight, free = ((p / "model.safetensors").read_bytes() for p in (out, out.with_name("free")))
    assert tight == free
