"""Ctrl-C and SIGKILL in mid-merge: nothing is left that a loader would take for a model."""

from __future__ import annotations

import resource
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.big import sparse_checkpoint
from tests.support.cli import command, data_written, run, start, wait_until
from tests.support.merging import assert_nothing_like_a_model, snapshot
from tests.support.outputs import shards_of

BYTES = 600_000_000


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [sparse_checkpoint(tmp_path / name, BYTES) for name in "ab"]


def begun(pair: list[Path], out: Path, *options: str) -> subprocess.Popen[str]:
    """A merge that has written some of its data, and will not be done for a minute."""
    known = {p.name for p in out.parent.iterdir()}
    process = start("average", *pair, "-o", out, *options, module="tests.support.slowly")
    wait_until(lambda: data_written(out.parent, known) > 1_000_000, process)
    assert not shards_of(out), "a shard has its final name before its data is whole"
    return process


def test_ctrl_c_exits_130_and_cleans_up(tmp_path: Path, pair: list[Path]) -> None:
    out = tmp_path / "out"
    before = snapshot_times(pair)
    process = begun(pair, out)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    assert_nothing_like_a_model(out)
    assert data_written(tmp_path, {"a", "b"}) < 1_000_000, "the unfinished data was left behind"
    assert snapshot_times(pair) == before


def snapshot_times(pair: list[Path]) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for f in pair for p in (f, *f.iterdir())}


def test_sigkill_leaves_nothing_final_and_the_next_run_succeeds(
    tmp_path: Path, pair: list[Path]
) -> None:
    out = tmp_path / "out"
    process = begun(pair, out)
    process.kill()
    process.communicate(timeout=60)
    assert_nothing_like_a_model(out)
    done = run("average", *pair, "-o", out, "--quiet")
    if done.code:
        assert "--overwrite" in done.err
        done = run("average", *pair, "-o", out, "--quiet", "--overwrite")
    assert done.code == 0, done.err
    assert [p.name for p in shards_of(out)] == ["model.safetensors"]
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"a", "b", "out"}, "what the killed run left is still there"


def test_a_disk_that_takes_no_more_is_a_short_message(tmp_path: Path) -> None:
    pair = [sparse_checkpoint(tmp_path / name, 60_000_000) for name in "ab"]
    out = tmp_path / "out"

    def limit_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))

    before = snapshot(*pair)
    done = subprocess.run(
        command("average", *pair, "-o", out),
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "out" in done.stderr
    assert_nothing_like_a_model(out)
    assert snapshot(*pair) == before
