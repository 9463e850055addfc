"""Memory that is allocated once and reused: aligned, and in huge pages where there are any."""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Sequence

from streammerge.storage import is_large
from streammerge.windows import Window, room_for

_HUGE_PAGE = 2 * 1024**2


def allocate(nbytes: int) -> memoryview:
    """Return zeroed, page-aligned memory of this process alone; pages come as they are touched.

    Direct transfers into huge pages run at 1.58 GB/s against 1.14 (docs/measurements.md).
    """
    if not hasattr(mmap, "MAP_ANONYMOUS"):  # Windows
        return memoryview(mmap.mmap(-1, max(1, nbytes)))
    memory = mmap.mmap(-1, max(1, nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and nbytes >= _HUGE_PAGE:
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


class Slot:
    """Room for what one input contributes to one window."""

    def __init__(self, nbytes: int) -> None:
        self.memory = allocate(nbytes)
        self._used = 0

    def clear(self) -> None:
        """Give the room free; views handed out before are void."""
        self._used = 0

    def take(self, length: int) -> memoryview:
        """Return a buffer for a read of this length, as `RangeReader.fetch` wants it.

        Many tiny ranges with alignment between them can outgrow the slot in theory; they get
        memory of their own then.
        """
        unit = mmap.PAGESIZE if is_large(length) else 8
        start = -(-self._used // unit) * unit
        end = start + room_for(length)
        if end > len(self.memory):
            return allocate(room_for(length))
        self._used = end
        return self.memory[start:end]


class Frame:
    """The buffers of one window in flight: a slot for each input, and the output."""

    def __init__(self, slots: Sequence[int], window: int) -> None:
        self.slots = [Slot(nbytes) for nbytes in slots]
        self.output = allocate(window)

    def memories(self) -> list[memoryview]:
        """Return all buffers, for registration with a device."""
        return [*(slot.memory for slot in self.slots), self.output]


class Flight:
    """One frame with the window it carries at the moment."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.window: Window
        self.views: list[list[memoryview]] = []
        self._pending = 0
        self._lock = threading.Lock()

    def wait_for(self, parts: int) -> None:
        """Expect that many calls of `part_done`."""
        self._pending = parts

    def part_done(self) -> bool:
        """Count one part; True for the last one."""
        with self._lock:
            self._pending -= 1
            return self._pending == 0
