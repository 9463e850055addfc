"""What of a file lies in the page cache: ask, put in, throw out. Linux only; elsewhere unknown.

A cold run needs its inputs out of the cache and a warm run needs them in it. Neither is taken on
trust: `cachestat(2)` (Linux 6.5) counts the pages before the clock starts.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

DROP = Path("/proc/sys/vm/drop_caches")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CACHESTAT = 451  # the same number on every architecture: it came after the tables were unified
_LIBC = ctypes.CDLL(None, use_errno=True)


class ColdUnavailable(Exception):
    """The page cache could not be emptied, so that a cold run would be a lie."""


class WarmUnavailable(Exception):
    """The files do not fit the page cache, so that a warm run would be a lie."""


def files_below(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and those in the folders, in order of name."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return found


def total_bytes(paths: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files_below(paths))


def cached_bytes(paths: Iterable[Path]) -> int | None:
    """Bytes of these files in the page cache; None where the kernel cannot tell."""
    total = 0
    for file in files_below(paths):
        pages = _cached_pages(file)
        if pages is None:
            return None
        total += min(pages * _PAGE, file.stat().st_size)
    return total


def _cached_pages(file: Path) -> int | None:
    whole_file = (ctypes.c_uint64 * 2)(0, 0)  # offset, length; 0 means to the end
    counts = (ctypes.c_uint64 * 5)()  # cached, dirty, in writeback, evicted, recently evicted
    fd = os.open(file, os.O_RDONLY)
    try:
        failed = _LIBC.syscall(_CACHESTAT, fd, whole_file, counts, 0)
    except AttributeError:  # no syscall(2) in this libc
        return None
    finally:
        os.close(fd)
    return None if failed else int(counts[0])


def make_cold(paths: Iterable[Path]) -> str:
    """Throw the files out of the cache and say how: everything as root, else only these files."""
    files = files_below(paths)
    os.sync()  # dirty pages cannot be dropped
    how = "drop_caches"
    try:
        DROP.write_text("3\n")
    except OSError:
        how = "fadvise of the inputs (not root: libraries stay warm)"
        _drop_files(files)
    left = cached_bytes(files)
    if left is None:
        if how != "drop_caches":
            raise ColdUnavailable("not root, and no cachestat(2) here to check fadvise by")
    elif left > 0.001 * total_bytes(files):
        raise ColdUnavailable(f"{left} bytes stayed in the page cache")
    return how


def _drop_files(files: list[Path]) -> None:
    if not hasattr(os, "posix_fadvise"):
        raise ColdUnavailable("this system can empty its page cache only as root")
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def make_warm(paths: Iterable[Path]) -> None:
    """Read the files until they are all in the cache; fail where they do not fit."""
    files = files_below(paths)
    size = total_bytes(files)
    os.sync()  # or a peer's unwritten output is flushed into the next run's time
    for _ in range(3):
        for file in files:
            _read(file)
        cached = cached_bytes(files)
        if cached is None or cached >= 0.999 * size:
            return
    raise WarmUnavailable(f"only {cached} of {size} bytes stay in the page cache")


def _read(file: Path) -> None:
    buffer = bytearray(8 * 2**20)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
