"""Inputs are read and nothing else: read-only ones will do, and the watch over them works."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import streammerge
from streammerge import api
from streammerge.storage import IoMode
from tests.support.checkpoints import add_side_files, like, random_tensors, write_checkpoint
from tests.support.merging import snapshot
from tests.support.untouched import left_alone

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
if sys.version_info >= (3, 12):  # the child only merges; it shares no lock with a thread
    pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]
NOBODY = 65534


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user of the machine can reach; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp(prefix="streammerge-test-"))
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def as_nobody(action: Callable[[], object]) -> None:
    """Run an action in a child without root's right to write to everything."""
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setegid(NOBODY)
                os.seteuid(NOBODY)
            action()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def read_only(folder: Path) -> list[Path]:
    """Two models, one of them sharded, in folders that nobody may write to."""
    first = random_tensors(1)
    paths = [
        add_side_files(write_checkpoint(folder / "a", first)),
        add_side_files(write_checkpoint(folder / "b", like(first, 2), shards=3)),
    ]
    for path in paths:
        for file in path.iterdir():
            file.chmod(0o444)
        path.chmod(0o555)
    return paths


@pytest.mark.parametrize("io", ["direct", "mmap", "buffered", "auto"])
def test_read_only_inputs_work(place: Path, tmp_path: Path, io: IoMode) -> None:
    paths = read_only(place)
    streammerge.average(paths, tmp_path / "out", io=io)  # so that all modules are loaded
    streammerge.verify(tmp_path / "out", recompute="all")
    before, outs = snapshot(*paths), place / "outs"
    outs.mkdir()
    outs.chmod(0o777)

    def merge() -> None:
        with pytest.raises(PermissionError):
            (paths[0] / "probe").touch()
        streammerge.average(paths, outs / "out", io=io)
        assert streammerge.verify(outs / "out", recompute="all").ok

    as_nobody(merge)
    assert snapshot(*paths) == before
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (outs / "out" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
        assert (outs / "out" / name).stat().st_mode & 0o200, "the output is as read-only"


def test_verifying_touches_no_input(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / name, random_tensors(1)) for name in "ab"]
    streammerge.average(paths, tmp_path / "out")
    before = snapshot(*paths, tmp_path / "out")
    assert streammerge.verify(tmp_path / "out", recompute="all").ok
    assert snapshot(*paths, tmp_path / "out") == before


def test_the_watch_over_inputs_sees_bytes_times_and_new_files(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / name, {"w": torch.ones(4)}) for name in "ab"]
    recipe = api.recipe_of(paths, {})
    file = paths[1] / "model.safetensors"
    content, times = file.read_bytes(), file.stat()

    def write_back() -> None:
        file.write_bytes(content[:-1] + b"x")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    for touch in (file.touch, write_back, (paths[0] / "new").touch):
        with pytest.raises(AssertionError, match="touched its inputs"), left_alone(recipe):
            touch()
