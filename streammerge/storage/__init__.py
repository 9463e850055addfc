"""path → bytes at an offset: the contract that every store keeps.

A store knows nothing of tensors. It lists files, reads small ones whole, and opens large ones for
ranged reads. To add one, write a module here with a class that satisfies `Storage`, and name its
scheme in `checkpoint.open_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

IoMode = Literal["auto", "direct", "mmap", "buffered", "cached"]
"""How files are read; "cached" is "auto" for files that will be read more than once."""
ALIGNMENT = 4096
"""Offsets, lengths and addresses of direct reads and writes are multiples of this many bytes."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells one version of a file from another without reading it.

    Attributes:
        size: bytes.
        version: modification time in ns, or a commit; any text that changes with the content.
    """

    size: int
    version: str


class RangeReader(Protocol):
    """One open file, read by one thread at a time."""

    mode: str
    """How it is read, for people: "direct", "buffered" or "mmap"."""

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Return `length` bytes from `offset`, lying in `buffer` or in memory of the reader's own.

        Args:
            offset: first byte in the file.
            length: number of bytes, at least 1.
            buffer: writable room for the bytes; large reads (`is_large`) get an aligned start and
                `2 * ALIGNMENT` bytes more than `length`.

        The view is never to be written to, and holds until the buffer is used again.

        Raises:
            ReadError: the file ends early, or the device fails. Never a short view.
        """

    def close(self) -> None:
        """Release the file; views returned before are void."""


class Storage(Protocol):
    """A folder of files, read-only."""

    label: str

    def list(self, folder: str = "") -> Mapping[str, int]:
        """Return the size of each file directly in a folder, by path from the root with "/"."""

    def identity(self, path: str) -> FileIdentity:
        """Return what tells this version of the file from another."""

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file, to its end where `length` is None; fewer only at its end.

        Raises:
            CheckpointError: there is no such file, or it cannot be read.
        """

    def open(self, path: str, mode: IoMode) -> RangeReader:
        """Open a file for ranged reads by the given mode, or by the best one with "auto"."""


LARGE_READ = 128 * 1024
"""Reads of at least this many bytes are worth a direct transfer into the caller's buffer."""


def is_large(length: int) -> bool:
    """Whether a read of this length needs an aligned buffer with room around the bytes."""
    return length >= LARGE_READ
