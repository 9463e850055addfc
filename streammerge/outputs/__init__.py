"""blocks → files: the contract that every target keeps.

An output takes aligned stretches of shard files in any order, and shows nothing that could be taken
for a model before `publish`. To add one, write a module here with classes that satisfy `Output` and
`ShardFile`, and choose it by the scheme of `-o` in `targets`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from streammerge.plan import Plan

CARD = "README.md"


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A finished file of the output: its name, bytes and sha256 ("" where none is needed).

    Attributes:
        nonfinite: NaN and infinite elements in it by tensor, where they were allowed.
        nonfinite_inputs: those of the inputs that went into it, by the input's label.
    """

    file: str
    bytes: int
    sha256: str
    nonfinite: Mapping[str, int] = field(default_factory=dict, compare=False)
    nonfinite_inputs: Mapping[str, int] = field(default_factory=dict, compare=False)


def count_nonfinite(shards: Iterable[WrittenShard]) -> tuple[dict[str, int], dict[str, int]]:
    """Return NaN and infinite elements of an output by tensor, and of its inputs by label."""
    written: Counter[str] = Counter()
    read: Counter[str] = Counter()
    for shard in shards:
        written.update(shard.nonfinite)
        read.update(shard.nonfinite_inputs)
    return dict(written), dict(read)


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
    one_by_one: bool
    """Whether shards come one after the other, for want of room or of digests, or several grow."""

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

    def stop(self) -> None:
        """Wake whoever waits in a write: the merge has failed. Called by any thread."""

    def abandon(self) -> bool:
        """End without publishing: finished shards are kept for another run, all else goes.

        Returns:
            whether there is something for another run to go on with.
        """


@dataclass(frozen=True, slots=True)
class Pushed:
    """A model on the Hub.

    Attributes:
        repo, branch: where.
        commit: its id.
        url: of the commit, or of the pull request.
        new: False where all of it was there already and nothing was committed.
    """

    repo: str
    branch: str
    commit: str
    url: str
    new: bool


class Target(Output, Protocol):
    """An output that a user can name: it is checked before hours are spent on a merge."""

    progress: Callable[[int], None]
    """Called with the bytes sent to the Hub since the last call."""

    @property
    def place(self) -> Path | str:
        """The folder, or hf://namespace/name[@branch]."""

    @property
    def pushed(self) -> Pushed | None:
        """What `publish` has put on the Hub; None before, and where that is no part of it."""

    def check(self) -> None:
        """Refuse a target that cannot be written to; changes nothing.

        Raises:
            OutputError, HubError: with the reason and the remedy.
        """

    def check_space(self, plan: Plan) -> None:
        """Refuse an output for which this machine has no room.

        Raises:
            DiskSpaceError: with what is needed and what is free.
        """

    def space(self, plan: Plan) -> tuple[Path, int]:
        """Return a folder, there or not, and the bytes that the output will take on its disk."""

    def bytes_to_send(self, plan: Plan) -> int:
        """Return the bytes of weights that go to the Hub."""
