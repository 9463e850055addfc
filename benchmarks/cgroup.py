"""A memory limit that the kernel enforces, by a memory cgroup of version 2 or 1. Needs root.

with memory_cgroup(768 * 2**20) as group:
    run(group.wrap(["python", "-m", "streammerge", …]))
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# The shell enters the group before it becomes the program, so that no page is charged elsewhere.
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


class CgroupUnavailable(Exception):
    """No memory cgroup can be made here: not Linux, not root, or a container without one."""


@dataclass(frozen=True)
class Group:
    path: Path
    limit: int

    def wrap(self, command: list[str]) -> list[str]:
        """The command that runs `command` inside this group."""
        return ["sh", "-c", _ENTER, str(self.path), *command]

    def peak(self) -> int | None:
        """The most that was charged, page cache included."""
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with suppress(OSError, ValueError):
                return int((self.path / name).read_text())
        return None


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Group]:
    """A group of its own for each use: what an earlier process left charged does not count."""
    path = _create()
    try:
        _limit(path, limit)
        yield Group(path, limit)
    finally:
        _remove(path)


def _create() -> Path:
    reasons = []
    for parent in _hierarchies():
        path = parent / f"streammerge-bench-{os.getpid()}-{time.monotonic_ns()}"
        try:
            path.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        if any((path / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            return path
        path.rmdir()
        reasons.append(f"{parent} has no memory controller to give")
    raise CgroupUnavailable("; ".join(reasons) or "no cgroup hierarchy is mounted")


def _hierarchies() -> list[Path]:
    """Version 1's memory hierarchy and version 2's only one, whichever are mounted."""
    found: list[Path] = []
    with suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, where, kind, options, *_ = line.split()
            if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
                found.append(Path(where))
    return found


def _limit(path: Path, limit: int) -> None:
    if (path / "memory.max").exists():
        (path / "memory.max").write_text(str(limit))
        with suppress(OSError):  # no swap: else the limit would only slow the process down
            (path / "memory.swap.max").write_text("0")
        return
    (path / "memory.limit_in_bytes").write_text(str(limit))
    with suppress(OSError):  # memory and swap together; absent where swap is not accounted
        (path / "memory.memsw.limit_in_bytes").write_text(str(limit))


def _remove(path: Path) -> None:
    for _ in range(50):  # the kernel lets go of a group a moment after its last process ended
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.02)
        else:
            return
