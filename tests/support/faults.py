"""A disk that fails: the k-th call that touches a file below a folder, once or from then on.

Every way in which Python gets at a file is covered: the functions of `os`, by path or descriptor,
and files that are opened with `open`.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

READS = ("preadv", "pread", "read", "scandir", "listdir", "statvfs", "stat", "lstat")
CHANGES = (
    *("pwrite", "write", "fsync", "ftruncate", "posix_fallocate", "rename", "replace"),
    *("unlink", "mkdir", "rmdir"),
)
WRITES = ("pwrite", "write")
SHORT = -1
"""In place of an error number: the call does a part of its work, and says so."""


@dataclass
class Disk:
    """What fails, and what was called.

    Attributes:
        root: calls on files below this folder count; those of the test itself do not.
        number: of the call that fails, from 0; None for none.
        code: what it fails with, or SHORT.
        lasting: whether all that follow fail too: reads after a read, changes after a change.
        calls: name and path of each call that counted.
        failed: name and path of those that failed.
    """

    root: Path
    number: int | None = None
    code: int = errno.EIO
    lasting: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def touched(self, name: str, path: str, *, known: bool = True) -> bool:
        """Count a call; True if it is to be short.

        Args:
            name, path: of the call and of what it touches.
            known: whether the system knows the path, and puts it in its error.

        Raises:
            OSError: it fails.
        """
        if not path.startswith(f"{self.root}/"):
            return False
        with self._lock:
            self.calls.append((name, path))
            here = len(self.calls) - 1 == self.number
            alike = bool(self.failed) and (name in CHANGES) == (self.failed[0][0] in CHANGES)
            if not (here or (self.lasting and alike)):
                return False
            if self.code == SHORT:
                return name in ("preadv", "pread", "read", "pwrite", "write")
            self.failed.append((name, path))
        raise OSError(self.code, os.strerror(self.code), *([path] if known else []))


def path_of(where: Any, folder: int | None = None) -> str:
    """The absolute path of what a call names: a path, one below an open folder, or a descriptor."""
    if isinstance(where, int):
        try:
            return os.readlink(f"/proc/self/fd/{where}").removesuffix(" (deleted)")
        except OSError:
            return ""
    path = os.fsdecode(where)
    return os.path.join(path_of(folder) if folder is not None else os.getcwd(), path)


@contextmanager
def failing(disk: Disk) -> Iterator[Disk]:
    """Let calls of this process meet the disk until the block ends."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*READS, *CHANGES, "open"):
            patch.setattr(os, name, _counted(disk, name, getattr(os, name)))
        opened = _opener(disk, builtins.open)
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)  # the one that pathlib calls
        yield disk


def _counted(disk: Disk, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        where = args[0] if args else "."
        folder = options.get("dir_fd", options.get("src_dir_fd"))
        by_path = not isinstance(where, int)
        if disk.touched(_kind(name, args), path_of(where, folder), known=by_path):
            return _shortened(name, original, args)
        return original(*args, **options)

    return call


def _kind(name: str, args: tuple[Any, ...]) -> str:
    """Opening a file to write to it is a change of its folder."""
    writing = name == "open" and len(args) > 1 and args[1] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return "mkdir" if writing else name


def _shortened(name: str, original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Do the first half of a read or a write, at least a byte of it."""
    if name == "preadv":
        view = memoryview(args[1][0])
        return original(args[0], [view[: max(1, len(view) // 2)]], args[2])
    if name in WRITES:
        return original(args[0], memoryview(args[1])[: max(1, len(args[1]) // 2)], *args[2:])
    return original(args[0], max(1, args[1] // 2), *args[2:])


def _opener(disk: Disk, original: Callable[..., Any]) -> Callable[..., Any]:
    """An `open` whose binary files meet the disk whenever they are read or written."""

    class Raw(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            view = memoryview(buffer).cast("B")
            short = disk.touched("read", path_of(self.name), known=False)
            return super().readinto(view[: max(1, len(view) // 2)] if short else view)

        def readall(self) -> bytes:
            parts = []
            while part := self.read(1 << 20):
                parts.append(part)
            return b"".join(parts)

        def read(self, size: int | None = -1) -> bytes | None:
            if size is None or size < 0:
                return self.readall()
            buffer = bytearray(size)
            count = self.readinto(buffer)
            return bytes(buffer[:count])

        def write(self, data: Any) -> int | None:
            view = memoryview(data).cast("B")
            short = disk.touched("write", path_of(self.name), known=False)
            return super().write(view[: max(1, len(view) // 2)] if short else view)

    def call(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or "b" not in mode or args or options:
            return original(file, mode, *args, **options)
        path = path_of(file)
        disk.touched("mkdir" if mode != "rb" else "open", path)
        raw = Raw(path, mode.replace("b", ""))
        return io.BufferedReader(raw) if mode == "rb" else io.BufferedWriter(raw)

    return call
