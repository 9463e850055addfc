"""What the kernel's page cache holds of a file (Linux), by system calls Python does not wrap."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Callable

_SYS_CACHESTAT = 451  # the same number on every architecture (Linux 6.5)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


@functools.cache
def _syscall() -> Callable[..., int] | None:
    if platform.system() != "Linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.restype = ctypes.c_long
    return function


def cached_bytes(fd: int) -> int | None:
    """Return how many bytes of an open file lie in the page cache; None where no one can tell."""
    syscall = _syscall()
    if syscall is None:
        return None
    whole_file, stat = _Range(0, 0), _Stat()
    if syscall(_SYS_CACHESTAT, fd, ctypes.byref(whole_file), ctypes.byref(stat), 0) != 0:
        return None
    return int(stat.cached) * os.sysconf("SC_PAGE_SIZE")


def drop_behind(fd: int, offset: int, length: int) -> None:
    """Tell the kernel that these clean bytes are not needed again; does nothing elsewhere."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
