"""What was measured on: the figures mean nothing without it."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def describe(workdir: Path) -> dict[str, str | int | float]:
    """Processor, memory, file system, versions, and how busy the machine is already."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count() or 0,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "file system": file_system(workdir),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "safetensors": _version("safetensors"),
        "streammerge": _version("streammerge"),
        "load before": round(os.getloadavg()[0], 2),
        "sha256 s/GB": round(digest_seconds_per_gb(), 3),
    }


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, by the longest mount point above it."""
    best = ("", "unknown")
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if folder.resolve().is_relative_to(where) and len(where) >= len(best[0]):
                best = (where, kind)
    return best[1]


def digest_seconds_per_gb() -> float:
    """What a sha256 of the output costs one core here: the goal for CPU time leaves it apart."""
    block = os.urandom(16 * 2**20)
    digest, start = hashlib.sha256(), time.process_time()
    for _ in range(8):
        digest.update(block)
    return (time.process_time() - start) / (8 * len(block)) * 1e9


def _field(file: str, key: str) -> str:
    with suppress(OSError):
        for line in Path(file).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
