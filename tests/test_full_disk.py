"""A really full disk: a file system of 8 MB, filled so far that a merge gets stuck in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

import streammerge
from streammerge.errors import DiskSpaceError, OutputError
from tests.support.merging import assert_nothing_like_a_model, snapshot
from tests.support.sites import files, inputs, merge

SIZE = 8_000_000
NEEDED = 400_000  # room for the output, its documents and what is written beside them
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave only so many bytes free."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(disk).free - free))
    return ballast


def test_an_output_that_does_not_fit_is_refused_beforehand(tmp_path: Path, disk: Path) -> None:
    models = inputs(tmp_path)
    with pytest.raises(DiskSpaceError, match=r"has .* free"):
        merge(models, disk / "out")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "5GB"}], ids=["shards", "one file"])
def test_a_disk_that_fills_up_during_the_merge(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    """The space was there when it was asked for: somebody else has taken it since."""
    models = inputs(tmp_path)
    merge(models, tmp_path / "whole", **options)
    before, out, failures = snapshot(*map(Path, models)), disk / "out", 0
    for free in range(0, NEEDED, 24_000):
        ballast = fill(disk, free)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
            error = attempt(models, out, **options)
            if error is not None:
                failures += 1
                for words in ("No space left on device", str(out), "Free some space"):
                    assert words in str(error)
                assert_nothing_like_a_model(out)
                ballast.unlink()
                assert attempt(models, out, **options) is None
        assert files(out) == files(tmp_path / "whole"), f"with {free} bytes free"
        assert streammerge.verify(out).ok
        assert snapshot(*map(Path, models)) == before
        shutil.rmtree(out)
        ballast.unlink(missing_ok=True)
    assert 5 < failures < NEEDED // 24_000, "the levels should end on both sides"


def attempt(models: list[str], out: Path, **options: str) -> OutputError | None:
    """Merge; return what went wrong."""
    try:
        merge(models, out, **options)
    except OutputError as error:
        return error
    return None


def test_inputs_on_a_full_disk_are_only_read(tmp_path: Path, disk: Path) -> None:
    models = inputs(disk)
    fill(disk, 0)
    before = snapshot(*map(Path, models))
    merge(models, tmp_path / "out")
    assert streammerge.verify(tmp_path / "out", recompute="all").ok
    assert snapshot(*map(Path, models)) == before
