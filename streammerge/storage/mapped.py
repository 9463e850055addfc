"""A file in the page cache, read where it lies there."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque

from streammerge.storage import ends_early

_MADV_POPULATE_READ = 22  # not in the mmap module


class MappedReader:
    """Hands out views of a private mapping and releases the pages behind.

    The mapping is copy-on-write, so that even a stray write could not reach the file.
    """

    def __init__(self, path: str, fd: int, size: int) -> None:
        self.mode = "mmap"
        self._path, self._size = path, size
        try:
            self._map = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
        finally:
            os.close(fd)
        self._view = memoryview(self._map)
        self._in_use: deque[tuple[int, int]] = deque()
        self._used = self._longest = 0

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Return a view of the mapping; `buffer` stays unused."""
        if offset + length > self._size:
            raise ends_early(self._path, offset, length)
        if hasattr(mmap, "MADV_DONTNEED"):
            self._populate(offset, length)
            self._release(length)
            self._in_use.append((offset, length))
        return self._view[offset : offset + length]

    def _release(self, length: int) -> None:
        """Unmap what was handed out well before the windows in flight; if not, it faults again."""
        self._used += length
        self._longest = max(self._longest, length)
        while self._used > 8 * self._longest and self._in_use:
            start, done = self._in_use.popleft()
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            after = (start + done) // mmap.PAGESIZE * mmap.PAGESIZE
            if after > first:
                self._map.madvise(mmap.MADV_DONTNEED, first, after - first)
            self._used -= done

    def _populate(self, offset: int, length: int) -> None:
        """Map the pages of a range in one call, here instead of one by one in the merge."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        with contextlib.suppress(OSError):  # Linux before 5.14
            self._map.madvise(_MADV_POPULATE_READ, start, offset - start + length)

    def close(self) -> None:
        """Drop the mapping as soon as no view of it is left."""
        self._view = memoryview(b"")
