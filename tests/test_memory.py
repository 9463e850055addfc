"""The memory bound: a small version of the measurement in benchmarks/."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from tests.support.big import sparse_checkpoint
from tests.support.cli import run, start
from tests.support.merging import sizes_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is read from /proc")
BYTES = 600_000_000


def anonymous(pid: int) -> int:
    """The process's own memory in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def peak_of_merge(models: list[Path], out: Path, budget: int, *options: str) -> int:
    """Merge in a process of its own and return the largest RssAnon seen."""
    process = start("average", *models, "-o", out, "--memory", budget, "--quiet", *options)
    peak, samples = 0, 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        samples += 1
        time.sleep(0.005)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert samples > 100, "too few samples to judge"
    assert (out / "model.safetensors").stat().st_size > BYTES
    (out / "model.safetensors").unlink()
    return peak


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("big")
    return [sparse_checkpoint(root / name, BYTES) for name in "abcdefgh"]


def least_for(models: list[Path], out: Path) -> int:
    done = run("average", *models, "-o", out, "--memory", "1MiB")
    assert done.code == 1
    return max(sizes_in(done.err))


def test_one_large_tensor_merges_within_the_least_memory(
    tmp_path: Path, models: list[Path]
) -> None:
    least = least_for(models[:2], tmp_path / "no")
    assert least < 512 * 2**20, "512 MiB must do for two models"
    peak = peak_of_merge(models[:2], tmp_path / "out", least)
    assert peak <= least, f"{peak / 2**20:.0f} MiB used, {least / 2**20:.0f} allowed"


@pytest.mark.slow
@pytest.mark.parametrize("io", ["direct", "mmap", "buffered"])
@pytest.mark.parametrize("count", [2, 8])
def test_512_mib_are_enough_for_any_number_of_models(
    tmp_path: Path, models: list[Path], io: str, count: int
) -> None:
    budget = 512 * 2**20
    peak = peak_of_merge(models[:count], tmp_path / "out", budget, "--io", io)
    assert peak <= budget, f"{peak / 2**20:.0f} MiB used with {count} models"
