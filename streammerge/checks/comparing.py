"""An output that writes nothing: what a pipeline gives it is held against what lies in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from streammerge.buffers import allocate
from streammerge.checks import Finding
from streammerge.errors import printable
from streammerge.formats.safetensors import Header, Location
from streammerge.outputs import WrittenShard
from streammerge.outputs.spans import Spans
from streammerge.plan import OutputShard, OutputTensor, Plan
from streammerge.storage import RangeReader
from streammerge.storage.local import LocalStorage
from streammerge.windows import room_for


class ComparingOutput:
    """Takes what a pipeline merges and holds it against what lies in a folder; writes nothing."""

    needs_digest = False
    one_by_one = True

    def __init__(self, storage: LocalStorage, plan: Plan, headers: Mapping[str, Header]) -> None:
        self.label = storage.label
        self._storage, self._headers = storage, headers
        self._shards = {shard.file: shard for shard in plan.shards}
        self._differing: Counter[OutputTensor] = Counter()

    def begin(self, plan: Plan) -> list[WrittenShard]:
        """Keep nothing: all shards are to be compared."""
        return []

    def create(self, file: str, size: int) -> ComparingShard:
        """Begin to compare a shard."""
        reader = self._storage.open(file, "direct")
        locations = self._headers[file].locations
        return ComparingShard(reader, self._shards[file], locations, self._differing)

    def complete(self, shard: WrittenShard) -> None:
        """Do nothing: nothing was written."""

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Do nothing: nothing was written."""

    def stop(self) -> None:
        """Do nothing: nothing waits."""

    def abandon(self) -> bool:
        """Do nothing: nothing was written."""
        return False

    def findings(self) -> list[Finding]:
        """Return the tensors that are not what the inputs give."""
        return [
            Finding(
                printable(tensor.name),
                f"{count:,} of {tensor.info.numel:,} elements are not what the inputs give",
            )
            for tensor, count in sorted(self._differing.items(), key=lambda item: item[0].name)
        ]


class ComparingShard:
    """One shard being compared; see `outputs.ShardFile`."""

    def __init__(
        self,
        reader: RangeReader,
        shard: OutputShard,
        locations: Mapping[str, Location],
        differing: Counter[OutputTensor],
    ) -> None:
        self._reader, self._spans = reader, Spans(shard)
        self._locations, self._differing = locations, differing
        self._buffer = allocate(0)

    def write(self, offset: int, buffer: memoryview, length: int) -> None:
        """Compare a stretch of the file as it should be with the tensors that it holds."""
        for tensor, start, part in self._spans.within(offset, length):
            place = self._locations[tensor.name].offset + start
            self._compare(tensor, self._read(place, part.stop - part.start), buffer[part])

    def _read(self, offset: int, length: int) -> memoryview:
        if len(self._buffer) < room_for(length):
            self._buffer = allocate(room_for(length))
        return self._reader.fetch(offset, length, self._buffer)

    def _compare(self, tensor: OutputTensor, found: memoryview, made: memoryview) -> None:
        ours, theirs = np.frombuffer(made, np.uint8), np.frombuffer(found, np.uint8)
        if not np.array_equal(ours, theirs):
            differs = (ours != theirs).reshape(-1, tensor.info.itemsize).any(axis=1)
            self._differing[tensor] += int(differs.sum())

    def finish(self) -> None:
        """Do nothing: nothing was written."""

    def close(self) -> None:
        """Close the file that was compared."""
        self._reader.close()
