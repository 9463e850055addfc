"""Memory as the target: the merged bytes go straight into tensors that wait for them.

Nothing is written to a disk and nothing outlives the process, so there is no digest, no journal and
nothing to go on with: a merge that fails leaves tensors that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from streammerge.errors import OutputError, listing
from streammerge.outputs import WrittenShard
from streammerge.outputs.spans import Spans
from streammerge.plan import Plan


class Target(Protocol):
    """The bytes of one tensor, little-endian and row-major, that are to be written."""

    nbytes: int

    def store(self, offset: int, data: memoryview) -> None:
        """Write bytes from `offset` on, whole elements each time."""


class MemoryOutput:
    """Fills tensors; see `outputs.Output`.

    Args:
        targets: one for each tensor of the plan, by name.
    """

    needs_digest = False
    one_by_one = True

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self.label = "memory"
        self._targets = targets
        self._spans: dict[str, Spans] = {}

    def begin(self, plan: Plan) -> list[WrittenShard]:
        """Check that every tensor of the plan has a target of its size; keep nothing.

        Raises:
            OutputError: one is missing, too many, or of another size.
        """
        planned = {tensor.name: tensor.info.nbytes for tensor in plan.tensors}
        found = {name: target.nbytes for name, target in self._targets.items()}
        wrong = sorted(n for n in planned.keys() | found.keys() if planned.get(n) != found.get(n))
        if wrong:
            raise OutputError(
                f"the tensors to be filled are not those of the plan:\n{listing(wrong)}",
                "Give one for each tensor of the plan, of its size.",
            )
        self._spans = {shard.file: Spans(shard) for shard in plan.shards}
        return []

    def create(self, file: str, size: int) -> MemoryShard:
        """Begin to fill the tensors of a shard."""
        return MemoryShard(self._spans[file], self._targets)

    def complete(self, shard: WrittenShard) -> None:
        """Do nothing: there is no run after this one."""

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Do nothing: who made the output holds the tensors, and documents describe files."""

    def stop(self) -> None:
        """Do nothing: no write waits."""

    def abandon(self) -> bool:
        """Keep nothing."""
        return False


class MemoryShard:
    """The tensors of one shard being filled; see `outputs.ShardFile`."""

    def __init__(self, spans: Spans, targets: Mapping[str, Target]) -> None:
        self._spans, self._targets = spans, targets

    def write(self, offset: int, buffer: memoryview, length: int) -> None:
        """Hand each tensor its part of a stretch of the file; the header is dropped."""
        for tensor, start, part in self._spans.within(offset, length):
            self._targets[tensor.name].store(start, buffer[part])

    def finish(self) -> None:
        """Do nothing: what is stored is there."""

    def close(self) -> None:
        """Do nothing."""
