"""The input files a reading thread has open: many shards of many models, few at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from streammerge.checkpoint import Checkpoint
from streammerge.storage import IoMode, RangeReader

MAX_OPEN = 256  # over all threads; well below the usual limit of 1024

ReadModes = dict[tuple[int, str], str]
"""How each file of each input was read last; shared by all threads."""


class OpenFiles:
    """The input files that one thread has open, the oldest closed when there are too many.

    Args:
        checkpoints: the opened inputs.
        io: how they are read.
        modes: where it is noted how that was.
        threads: how many there are.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], io: IoMode, modes: ReadModes, threads: int
    ) -> None:
        self._checkpoints, self._io, self._modes = checkpoints, io, modes
        self._limit = max(1, MAX_OPEN // threads)
        self._open: OrderedDict[tuple[int, str], RangeReader] = OrderedDict()

    def get(self, model: int, file: str) -> RangeReader:
        """Return the reader of a file, opened when it is first needed."""
        key = (model, file)
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if len(self._open) >= self._limit:
            self._open.popitem(last=False)[1].close()
        reader = self._checkpoints[model].open(file, self._io)
        self._open[key], self._modes[key] = reader, reader.mode
        return reader

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all of them."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()
