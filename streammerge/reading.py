"""The slots of a flight filled: at once from a disk, some flights ahead from a network."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from streammerge.buffers import Flight
from streammerge.openfiles import OpenFiles
from streammerge.storage import BegunRead, EarlyReader


class _Done:
    """A read that is over."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def is_done(self) -> bool:
        return True

    def wait(self) -> memoryview:
        return self._view


class Filling:
    """One thread's share of the reads of one flight, begun when this is made.

    Args:
        flight: its slots are filled.
        models: the inputs that are this thread's.
        files: where they are open.
        stop: set when nobody waits for the bytes any more.
    """

    def __init__(
        self, flight: Flight, models: Sequence[int], files: OpenFiles, stop: Event
    ) -> None:
        self.flight, self.nbytes = flight, 0
        self._reads: list[tuple[int, BegunRead]] = []
        for model in models:
            slot = flight.frame.slots[model]
            slot.clear()
            for wanted in flight.window.reads[model]:
                reader = files.get(model, wanted.file)
                buffer = slot.take(wanted.length)
                read: BegunRead
                if isinstance(reader, EarlyReader):
                    read = reader.begin(wanted.offset, wanted.length, buffer, stop)
                else:
                    read = _Done(reader.fetch(wanted.offset, wanted.length, buffer))
                self._reads.append((model, read))
                self.nbytes += wanted.length

    def is_done(self) -> bool:
        """Whether `finish` would not have to wait."""
        return all(read.is_done() for _, read in self._reads)

    def finish(self) -> None:
        """Hand the bytes over to the flight when all of them are there."""
        for model, read in self._reads:
            self.flight.views[model].append(read.wait())
