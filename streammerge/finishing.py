"""The end of the pipeline: each shard's digest and file, and the moment when both are done."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping

from streammerge.buffers import Flight
from streammerge.outputs import Output, ShardFile, WrittenShard
from streammerge.plan import OutputShard, Plan


class _Digest:
    """The digest of a shard, up to the first byte that is still to come."""

    def __init__(self) -> None:
        self.sha256, self.length = hashlib.sha256(), 0
        self.early: dict[int, Flight] = {}


class Finisher:
    """Digests and writes windows: `write` is for one thread, `digest` for one for each shard.

    Args:
        plan: names and sizes of the shards.
        output: where they go; told of each shard that is durable and has its digest.
        kept: shards of an earlier run, which get no windows.
        nonfinite: returns the counts of a merged shard; see `WrittenShard`.
    """

    def __init__(
        self,
        plan: Plan,
        output: Output,
        kept: list[WrittenShard],
        nonfinite: Callable[[OutputShard], tuple[Mapping[str, int], Mapping[str, int]]],
    ) -> None:
        self._plan, self._output = plan, output
        self.shards = list(kept)
        self._nonfinite = nonfinite
        self._sums: dict[int, _Digest] = {}
        self._files: dict[int, ShardFile] = {}
        self._missing: dict[int, int] = {}
        self._digests: dict[int, WrittenShard] = {}
        self._durable: set[int] = set()
        self._lock = threading.Lock()

    def digest(self, arrived: Flight) -> Iterator[Flight]:
        """Take a window of a shard, in any order; yield those that are digested, in their own."""
        number = arrived.window.shard
        shard, found = self._plan.shards[number], self._sums.setdefault(number, _Digest())
        found.early[arrived.window.start] = arrived
        while (flight := found.early.pop(found.length, None)) is not None:
            window = flight.window
            if self._output.needs_digest:
                found.sha256.update(flight.frame.output[: window.length])
            found.length += window.length
            if found.length == shard.file_size:
                del self._sums[number]
                digest = found.sha256.hexdigest() if self._output.needs_digest else ""
                counts = self._nonfinite(shard)
                written = WrittenShard(shard.file, shard.file_size, digest, *counts)
                self._complete(number, written=written)
            yield flight

    def write(self, flight: Flight) -> None:
        """Write a window to its place; a shard is made durable with its last byte."""
        window = flight.window
        shard = self._plan.shards[window.shard]
        if window.shard not in self._files:
            self._missing[window.shard] = shard.file_size
            self._files[window.shard] = self._output.create(shard.file, shard.file_size)
        file = self._files[window.shard]
        file.write(window.start, flight.frame.output, window.length)
        self._missing[window.shard] -= window.length
        if self._missing[window.shard] == 0:
            file.finish()
            self._files.pop(window.shard).close()
            self._complete(window.shard)

    def _complete(self, shard: int, written: WrittenShard | None = None) -> None:
        """Note that a shard is digested, or durable; tell the output when it is both."""
        with self._lock:
            if written is not None:
                self._digests[shard] = written
            else:
                self._durable.add(shard)
            if shard in self._digests and shard in self._durable:
                self.shards.append(self._digests[shard])
                self._output.complete(self._digests[shard])

    def close(self) -> None:
        """Close the files of shards that were not finished."""
        for file in self._files.values():
            file.close()
