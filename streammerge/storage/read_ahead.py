"""Ranges of remote files fetched before they are asked for, over several connections.

The pipeline announces its reads in their order, windows ahead of making them. Here they are cut
into blocks, threads fetch the blocks, and the reader takes their bytes in order:

    expect ──> ranges ──> threads, a block each ──> blocks in order ──> take
                              ↑                                          │
                              └──────────── empty blocks come back ──────┘

Nothing is fetched that was not announced, nothing twice, and there are only so many blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from streammerge.storage.hub_files import HubFile
from streammerge.storage.retrying import Stopped

MiB = 1024**2
_LEAST, _MOST = 2, 8  # connections of one model
_GOOD_BLOCK, _LARGEST_BLOCK = 4 * MiB, 16 * MiB
LEAST_MEMORY = 3 * 256 * 1024
"""Bytes below which there is no point in reading ahead."""


def shape(memory: int) -> tuple[int, int]:
    """Return the number of connections, and the bytes of a block; there is one block more.

    A request costs a round trip, so that blocks had better be large: at 50 MB/s and 30 ms, 4 MiB
    reach 0.7 of the speed of a connection and 16 MiB 0.9. More connections make up for it.
    """
    connections = max(_LEAST, min(_MOST, memory // _GOOD_BLOCK - 1))
    return connections, min(_LARGEST_BLOCK, memory // (connections + 1))


class _Block:
    """Bytes of one range, on their way from the network to the reader."""

    def __init__(self, size: int) -> None:
        self.memory = memoryview(bytearray(size))
        self.file, self.offset, self.length = "", 0, 0
        self.filled = self.taken = self.wanted = 0
        self.error: Exception | None = None

    def load(self, file: str, offset: int, length: int) -> None:
        self.file, self.offset, self.length = file, offset, length
        self.filled = self.taken = self.wanted = 0


class HubReadAhead:
    """Reads ahead in files on the Hub; see `storage.ReadAhead`.

    Args:
        open_file: returns the remote file of a path.
        memory: bytes for all blocks.
    """

    def __init__(self, open_file: Callable[[str], HubFile], memory: int) -> None:
        connections, size = shape(memory)
        self._open_file = open_file
        self._ranges: deque[tuple[str, int, int]] = deque()
        self._free = [_Block(size) for _ in range(connections + 1)]
        self._blocks: deque[_Block] = deque()  # in the order of their bytes
        self._changed = threading.Condition()
        self.stop = threading.Event()
        self._block_size = size
        for number in range(connections):
            name = f"hub {number}"
            threading.Thread(target=self._fetch_blocks, name=name, daemon=True).start()

    def expect(self, file: str, offset: int, length: int) -> None:
        """Announce a read; one that continues the last one extends it."""
        with self._changed:
            last = self._ranges[-1] if self._ranges else None
            if last is not None and last[0] == file and last[1] + last[2] == offset:
                self._ranges[-1] = (file, last[1], last[2] + length)
            else:
                self._ranges.append((file, offset, length))
            self._changed.notify_all()

    def take(self, file: str, offset: int, view: memoryview) -> int:
        """Move the next bytes into `view`; return how many were announced as this read.

        Raises:
            Exception: what went wrong when they were fetched, or that they were called off.
        """
        done = 0
        while done < len(view):
            block = self._next_block(file, offset + done)
            if block is None:
                break
            count = min(block.length - block.taken, len(view) - done)
            self._await(block, block.taken + count)
            view[done : done + count] = block.memory[block.taken : block.taken + count]
            block.taken += count
            done += count
            if block.taken == block.length:
                with self._changed:
                    self._free.append(self._blocks.popleft())
                    self._changed.notify_all()
        return done

    def _next_block(self, file: str, position: int) -> _Block | None:
        """Wait for the block that holds a byte to be begun; None where it was not announced."""
        with self._changed:
            while not self.stop.is_set():
                if self._blocks:
                    block = self._blocks[0]
                    expected = (block.file, block.offset + block.taken)
                    return block if expected == (file, position) else None
                if not self._ranges or self._ranges[0][:2] != (file, position):
                    return None
                self._changed.wait()
        raise Stopped

    def _await(self, block: _Block, count: int) -> None:
        """Wait until so many bytes of a block are there."""
        if block.filled >= count:
            return
        with self._changed:
            block.wanted = count
            while block.filled < count:
                if block.error is not None:
                    raise block.error
                if self.stop.is_set():
                    raise Stopped
                self._changed.wait()

    def _fetch_blocks(self) -> None:
        while (block := self._begin_block()) is not None:
            try:
                self._fetch(block)
            except Exception as error:
                with self._changed:
                    block.error = error
                    self._changed.notify_all()
                return

    def _begin_block(self) -> _Block | None:
        """Wait for an empty block and a range to fetch into it; None at the end."""
        with self._changed:
            while not self.stop.is_set():
                if self._free and self._ranges:
                    file, offset, length = self._ranges.popleft()
                    block, count = self._free.pop(), min(length, self._block_size)
                    if count < length:
                        self._ranges.appendleft((file, offset + count, length - count))
                    block.load(file, offset, count)
                    self._blocks.append(block)
                    self._changed.notify_all()
                    return block
                self._changed.wait()
        return None

    def _fetch(self, block: _Block) -> None:
        def filled(count: int) -> None:
            block.filled = count
            # The reader says what it waits for before it looks whether that is there.
            if 0 < block.wanted <= count:
                with self._changed:
                    block.wanted = 0
                    self._changed.notify_all()

        view = block.memory[: block.length]
        self._open_file(block.file).read_into(block.offset, view, self.stop, filled)

    def close(self) -> None:
        """End the threads, at the latest when their connections time out."""
        with self._changed:
            self.stop.set()
            self._changed.notify_all()


class StreamReader:
    """A remote file whose bytes are taken from what was read ahead, or asked for now."""

    mode = "stream"

    def __init__(self, remote: HubFile, path: str, ahead: HubReadAhead | None) -> None:
        self._remote, self._path, self._ahead = remote, path, ahead

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Move the bytes to the start of the buffer; see `storage.RangeReader`."""
        view, done, stop = buffer[:length], 0, None
        if self._ahead is not None:
            done, stop = self._ahead.take(self._path, offset, view), self._ahead.stop
        if done < length:
            self._remote.read_into(offset + done, view[done:], stop)
        return view

    def close(self) -> None:
        """Nothing is held open."""
