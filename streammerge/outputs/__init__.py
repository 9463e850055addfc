"""blocks → files: the contract that every target keeps.

An output takes aligned stretches of shard files in any order, and shows nothing that could be taken
for a model before `publish`. To add one, write a module here with classes that satisfy `Output` and
`ShardFile`, and choose it by the scheme of `-o` in `api`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from streammerge.plan import Plan


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A finished file of the output: its name, bytes and sha256 ("" where none is needed)."""

    file: str
    bytes: int
    sha256: str


class ShardFile(Protocol):
    """One shard being written, by one thread."""

    def write(self, offset: int, buffer: memoryview, length: int) -> None:
        """Write a stretch of the file.

        Args:
            offset: first byte, a multiple of `storage.ALIGNMENT`.
            buffer: aligned memory; what follows `length` is padding up to the next aligned byte.
            length: bytes that count.

        Raises:
            OutputError: the disk is full or fails; names the file.
        """

    def finish(self) -> None:
        """Make the file durable: when this returns, its bytes survive a power cut."""

    def close(self) -> None:
        """Release the file, finished or not."""


class Output(Protocol):
    """Where the merged checkpoint goes."""

    label: str
    needs_digest: bool
    """Whether the shards are to be digested; hashing costs about as much as merging."""

    def begin(self, plan: Plan) -> list[WrittenShard]:
        """Check that the target can take the output, and make room; nothing is visible yet.

        Returns:
            the shards that an interrupted run of the same plan left, checked by digest.

        Raises:
            OutputError: it cannot be used.
            DiskSpaceError: the output does not fit.
        """

    def create(self, file: str, size: int) -> ShardFile:
        """Begin a shard of known size."""

    def complete(self, shard: WrittenShard) -> None:
        """Note a shard that is durable, so that an interrupted run can go on after it."""

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Give everything its final name: documents and shards, and at the very end `last`."""

    def abandon(self) -> bool:
        """End without publishing: finished shards are kept for another run, all else goes.

        Returns:
            whether there is something for another run to go on with.
        """
