"""path → bytes at an offset: the contract that every store keeps.

A store knows nothing of tensors. It lists files, reads small ones whole, and opens large ones for
ranged reads. To add one, write a module here with a class that satisfies `Storage`, and name its
scheme in `checkpoint.open_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal, Protocol, runtime_checkable

from streammerge.errors import ReadError

IoMode = Literal["auto", "direct", "mmap", "buffered", "cached", "sample"]
"""How files are read. "cached" is "auto" for files that will be read more than once; "sample" is
for a few bytes of a file that is not to be downloaded for that."""
DownloadMode = Literal["cache", "stream"]
"""What happens to weights on the Hub: kept in its client's cache, or read as they are merged."""
ALIGNMENT = 4096
"""Offsets, lengths and addresses of direct reads and writes are multiples of this many bytes."""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells one version of a file from another without reading it.

    Attributes:
        size: bytes.
        version: modification time in ns, or a commit; any text that changes with the content.
        digest: of the content, where the store knows it: "sha256:…", or "git:…" for git's id.
    """

    size: int
    version: str
    digest: str = ""


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


class BegunRead(Protocol):
    """A read whose bytes are perhaps still on their way."""

    def is_done(self) -> bool:
        """Whether `wait` would not have to."""

    def wait(self) -> memoryview:
        """Return the bytes, as `RangeReader.fetch` does, and raise what it raises."""


@runtime_checkable
class EarlyReader(RangeReader, Protocol):
    """An open file from which several reads are better begun before the first is waited for."""

    def begin(self, offset: int, length: int, buffer: memoryview, stop: Event) -> BegunRead:
        """Begin to fetch bytes; arguments as for `fetch`.

        Args:
            stop: once it is set, nobody waits for the read any more.
        """


class Download(Protocol):
    """A file that has to be fetched, or checked, before it can be read from this machine."""

    @property
    def file(self) -> str:
        """Path in the store."""

    @property
    def missing(self) -> int:
        """Bytes to be fetched; 0 for a file that is here and only to be checked."""

    @property
    def folder(self) -> Path:
        """Where it will lie, or a folder above that."""

    def run(self, progress: Callable[[int], None], stop: Event) -> list[str]:
        """Fetch and check the file; return what the user should know.

        Args:
            progress: called with the bytes fetched since the last call, in all `missing`.
            stop: once it is set, the download ends with an exception as soon as it can.

        Raises:
            HubError: it cannot be had, or is not what the repository says.
            DiskSpaceError: the disk is full.
        """

    def cut(self) -> None:
        """Cut the connections of a `run` that was stopped, so that it need not wait for bytes."""


class Storage(Protocol):
    """A folder of files, read-only."""

    label: str
    """What the user wrote; names the store in messages."""
    pinned: str
    """A reference that means these very files for ever; "" where there is none."""

    def name(self, path: str) -> str:
        """Return how a user names a file of the store."""

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
        """Open a file for ranged reads by the given mode, or by the best one with "auto".

        What `pending` says of it is done first, where that has not happened.
        """

    def pending(self, path: str) -> Download | None:
        """Return what must happen before the file can be read from this machine; None: nothing."""


LARGE_READ = 128 * 1024
"""Reads of at least this many bytes are worth a direct transfer into the caller's buffer."""


def is_large(length: int) -> bool:
    """Whether a read of this length needs an aligned buffer with room around the bytes."""
    return length >= LARGE_READ


def ends_early(path: str, offset: int, length: int) -> ReadError:
    """Return the error for a file that is shorter than its header says."""
    return ReadError(
        f"{path} ends before byte {offset + length:,}, which its header promises",
        "The file is truncated or was changed during the merge: download or copy it again.",
    )
