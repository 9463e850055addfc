"""Ctrl-C and kill -9 in the middle of a merge from the Hub, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch

from streammerge.storage import DownloadMode
from tests.support.checkpoints import write_checkpoint
from tests.support.cli import run, start, wait_until
from tests.support.hub import Hub, Slow
from tests.support.merging import assert_nothing_like_a_model
from tests.support.remote import MODES, weights_of

BOTH = pytest.mark.parametrize("mode", MODES)
SHARDS = "*.safetensors"
SOON = 4.0  # seconds; each shard takes ten, and all of them a minute
pytestmark = pytest.mark.slow


@pytest.fixture
def repos(tmp_path: Path, hub: Hub) -> list[str]:
    """Two models of 6 MB, each in six shards."""
    names = []
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"w{i}": torch.randn(250_000, generator=generator) for i in range(6)}
        hub.create(f"org/{name}", write_checkpoint(tmp_path / name, tensors, shards=6))
        names.append(f"org/{name}")
    return names


def begun(hub: Hub, arguments: list[object]) -> subprocess.Popen[str]:
    """A merge that has received some of the weights, slowly, and by far not all."""
    hub.fault(Slow(100_000), kind="download", file=SHARDS, times=None, skip=12)
    process = start("average", *arguments)
    some: Callable[[], bool] = lambda: hub.log.downloaded(file=SHARDS) > 300_000  # noqa: E731
    wait_until(some, process)
    return process


@BOTH
def test_ctrl_c_ends_soon_and_leaves_no_pieces(
    tmp_path: Path, hub: Hub, repos: list[str], mode: DownloadMode
) -> None:
    out = tmp_path / "out"
    process = begun(hub, [*repos, "-o", out, "--download", mode])
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert time.monotonic() - began < SOON
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert_nothing_like_a_model(out)
    assert not list(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("*.incomplete"))


@BOTH
def test_a_killed_merge_is_done_by_the_next_run(
    tmp_path: Path, hub: Hub, repos: list[str], mode: DownloadMode
) -> None:
    out = tmp_path / "out"
    arguments: list[object] = [*repos, "-o", out, "--download", mode, "--max-shard-size", "1MB"]
    process = begun(hub, arguments)
    process.kill()
    process.communicate(timeout=20)
    assert_nothing_like_a_model(out)
    hub.heal()
    done = run("average", *arguments, "--quiet")
    assert done.code == 0, done.err
    wanted = run("average", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "w", *arguments[-2:])
    assert wanted.code == 0, wanted.err
    assert weights_of(out) == weights_of(tmp_path / "w")
