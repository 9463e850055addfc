"""Sizes as people write them, and the folder that a benchmark works in.

parse_size("1.5GB") == 1_500_000_000, parse_size("512MiB") == 536_870_912
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MIB = 2**20
_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


def parse_size(text: str) -> int:
    """Bytes of a size such as 4GB (decimal), 768MiB (binary) or 4096."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write e.g. 1.5GB or 512MiB")
    return round(float(match[1]) * _UNITS[match[2].upper()])


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def mebibytes(count: float | None) -> str:
    return "–" if count is None else f"{count / MIB:.0f}"


def add_workdir_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        type=Path,
        help="where checkpoints and outputs go, on the disk to be measured (default: a temporary "
        "folder below the user's cache folder, or here where there is none)",
    )


def _default_parent() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache if os.access(cache, os.W_OK) else Path.cwd()


def _exit(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def workspace(workdir: Path | None, needs: int) -> Iterator[Path]:
    """A fresh folder with room for `needs` bytes, removed on the way out, even after Ctrl-C."""
    parent = workdir or _default_parent()
    parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(parent).free
    if free < needs * 1.05:
        sys.exit(f"{parent} has {gigabytes(free)} free, {gigabytes(needs)} are needed: --workdir")
    signal.signal(signal.SIGTERM, _exit)  # the default would end us without cleaning up
    with tempfile.TemporaryDirectory(prefix="streammerge-bench-", dir=parent) as folder:
        yield Path(folder)
