"""Files on this machine: a folder as a store, and three ways to read a range.

Which way is best depends on where the bytes lie (measured, see docs/measurements.md): a file in the
page cache is read through it, any other by direct transfers that leave no trace in the cache and
cost no CPU. Where a file system has no direct reads, buffered ones drop the cache behind them.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from streammerge.errors import CheckpointError, ReadError, printable
from streammerge.storage import (
    ALIGNMENT,
    LARGE_READ,
    FileIdentity,
    IoMode,
    RangeReader,
    ends_early,
    is_large,
)
from streammerge.storage.mapped import MappedReader
from streammerge.storage.pagecache import cached_bytes, drop_behind

_MOSTLY = 0.5  # share of a file in the page cache from which reading through the cache is faster


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.label = str(root)
        self.pinned = ""

    def list(self, folder: str = "") -> Mapping[str, int]:
        """Return the size of each regular file in a folder; links to files count as files."""
        sizes = {}
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(self.root / folder, error) from error
        for entry in entries:
            with contextlib.suppress(OSError):  # a dangling link is no file
                if entry.is_file():
                    sizes[f"{folder}/{entry.name}".lstrip("/")] = entry.stat().st_size
        return sizes

    def name(self, path: str) -> str:
        """Return the path of a file as the user would write it."""
        return f"{self.label}/{path}"

    def path(self, path: str) -> Path:
        """Return where a file of this store lies on the machine."""
        return self.root / path

    def identity(self, path: str) -> FileIdentity:
        """Return size and modification time."""
        try:
            info = os.stat(self.root / path)
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        return FileIdentity(info.st_size, str(info.st_mtime_ns))

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a small file or of a header."""
        try:
            with open(self.root / path, "rb") as file:
                file.seek(offset)
                return file.read(-1 if length is None else length)
        except (OSError, ValueError) as error:  # ValueError: NUL in a path
            raise _unreadable(self.root / path, error) from error

    def open(self, path: str, mode: IoMode) -> RangeReader:
        """Open a file for ranged reads; "auto" looks whether it is in the page cache."""
        full = str(self.root / path)
        try:
            return _open_reader(full, mode)
        except OSError as error:
            raise _unreadable(full, error) from error

    def pending(self, path: str) -> None:
        """Return None: the files are here."""


def _unreadable(path: str | Path, error: Exception) -> CheckpointError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return CheckpointError(
        f"cannot read {printable(str(path))}: {reason}", "Check that it exists and is readable."
    )


def _open_reader(path: str, mode: IoMode) -> RangeReader:
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    size = os.fstat(fd).st_size
    cached = cached_bytes(fd)
    in_cache = cached is not None and cached > _MOSTLY * size
    if (mode == "mmap" or (mode in ("auto", "cached") and in_cache)) and size > 0:
        return MappedReader(path, fd, size)
    if mode in ("direct", "auto"):
        try:
            direct = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except (AttributeError, OSError):  # no such flag (macOS), or not on this file system
            pass
        else:
            os.close(fd)
            return DirectReader(path, direct)
    if in_cache:
        return BufferedReader(path, fd, kept="file")
    return BufferedReader(path, fd, kept="until closed" if mode == "cached" else "nothing")


class BufferedReader:
    """Reads through the page cache, which it leaves as it found it."""

    def __init__(
        self, path: str, fd: int, kept: Literal["file", "until closed", "nothing"]
    ) -> None:
        self.mode = "buffered"
        self._path, self._fd, self._kept = path, fd, kept

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Copy the bytes to the start of the buffer; see `RangeReader`."""
        view = buffer[:length]
        read_fully(self._fd, self._path, offset, view, length)
        if self._kept == "nothing":
            drop_behind(self._fd, offset, length)
        return view

    def close(self) -> None:
        """Close the file."""
        if self._kept == "until closed":
            drop_behind(self._fd, 0, 0)
        os.close(self._fd)


class DirectReader:
    """Reads past the page cache, from the device into the buffer."""

    def __init__(self, path: str, fd: int) -> None:
        self.mode = "direct"
        self._path, self._fd = path, fd

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Transfer whole aligned units around the bytes; small reads go by a bounce buffer."""
        start = offset % ALIGNMENT
        rounded = -(-(start + length) // ALIGNMENT) * ALIGNMENT
        if is_large(length):
            self._transfer(offset - start, buffer[:rounded], start + length)
            return buffer[start : start + length]
        bounce = _bounce_buffer()
        self._transfer(offset - start, bounce[:rounded], start + length)
        buffer[:length] = bounce[start : start + length]
        return buffer[:length]

    def _transfer(self, offset: int, view: memoryview, needed: int) -> None:
        try:
            read_fully(self._fd, self._path, offset, view, needed)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # The device wants another alignment: go on through the page cache.
            os.close(self._fd)
            self._fd, self.mode = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), "buffered"
            read_fully(self._fd, self._path, offset, view, needed)
            drop_behind(self._fd, offset, len(view))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


_thread = threading.local()


def _bounce_buffer() -> memoryview:
    """Return this thread's aligned buffer for small direct reads."""
    if not hasattr(_thread, "bounce"):  # anonymous mappings begin at a page
        size = LARGE_READ + 2 * ALIGNMENT
        _thread.bounce = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return memoryview(_thread.bounce)


def read_fully(fd: int, path: str, offset: int, view: memoryview, needed: int) -> None:
    """Fill `view` from `offset`, at least its first `needed` bytes; the rest may lie past the end.

    Raises:
        ReadError: the file ends before that, or the device fails.
        OSError: with EINVAL, where a direct read was refused for its alignment.
    """
    done = 0
    while done < needed:
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise
            raise ReadError(
                f"reading {path} at byte {offset + done:,} failed: {error.strerror}",
                "Check the disk and the file, then run the same command again.",
            ) from error
        if count == 0:
            raise ends_early(path, offset, needed)
        done += count
