"""Ranges of remote files, fetched by several connections at once into the callers' buffers.

A read is cut into parts, and threads take parts in the order in which reads were begun. So what is
needed first is fetched first, whatever the number of files and models, nothing is held here, and
nothing is fetched that nobody asked for.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from contextlib import closing

from streammerge.storage.hub_files import HubFile
from streammerge.storage.retrying import Stopped
from streammerge.storage.wire import Wire

CONNECTIONS = 16
"""Of all models together, at most. The Hub's stores give each some 50 MB/s."""
SECONDS = 0.2
"""What a request should take: long beside a round trip, and short beside a merge, at whose end the
connections that are done wait for the others."""
SHORTEST, LONGEST = 1024**2, 16 * 1024**2
"""Bytes of a request, about, as `SECONDS` demands at the speed that a connection has."""
_IDLE = 5.0  # seconds without work after which a thread ends
_GLANCE = 0.1  # seconds between two looks at whether the reader was called off


class RemoteRead:
    """A read that was begun; see `storage.BegunRead`."""

    def __init__(self, view: memoryview, parts: int, stop: threading.Event) -> None:
        self.view, self.stop, self._missing = view, stop, parts
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def part_done(self, error: BaseException | None) -> None:
        """Count a part that is there, or failed."""
        with self._changed:
            self._missing -= 1
            self._error = self._error or error
            self._changed.notify_all()

    def is_done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._missing == 0 or self._error is not None

    def wait(self) -> memoryview:
        """Return the bytes when all of them are there; see `RangeReader.fetch` for errors."""
        with self._changed:
            while not self.is_done():
                if self.stop.is_set():
                    raise Stopped
                self._changed.wait(_GLANCE)
        if self._error is not None:
            raise self._error
        return self.view


_Part = tuple[HubFile, int, memoryview, RemoteRead]


class Connections:
    """Threads that fetch parts; they come with the work, and go when there is none."""

    def __init__(self, limit: int = CONNECTIONS) -> None:
        self._limit = limit
        self._parts: deque[_Part] = deque()
        self._threads = self._idle = 0
        self._speed = 0.0  # bytes a second of a connection, lately
        self._changed = threading.Condition()

    def begin(
        self, file: HubFile, offset: int, view: memoryview, stop: threading.Event
    ) -> RemoteRead:
        """Begin to fill `view` with the bytes of a file from `offset`."""
        part = min(LONGEST, max(SHORTEST, self._speed * SECONDS))
        count = max(1, round(len(view) / part))
        cuts = [len(view) * number // count for number in range(count + 1)]
        read = RemoteRead(view, count, stop)
        with self._changed:
            for begin, end in itertools.pairwise(cuts):
                self._parts.append((file, offset + begin, view[begin:end], read))
            self._start_threads()
            self._changed.notify(count)
        return read

    def _start_threads(self) -> None:
        """Start threads for parts that wait; the caller has the lock."""
        for _ in range(min(len(self._parts) - self._idle, self._limit - self._threads)):
            self._threads += 1
            threading.Thread(target=self._work, name="hub", daemon=True).start()

    def _work(self) -> None:
        with closing(Wire()) as wire:
            while (part := self._next_part()) is not None:
                self._fetch(part, wire)

    def _fetch(self, part: _Part, wire: Wire) -> None:
        file, offset, view, read = part
        start = time.perf_counter()
        try:
            if read.stop.is_set() or read.is_done():  # another part of it has failed
                raise Stopped
            file.read_into(offset, view, read.stop, wire=wire)
        except BaseException as error:
            read.part_done(error)
        else:
            read.part_done(None)
            speed = len(view) / (time.perf_counter() - start)
            with self._changed:
                self._speed = (7 * self._speed + speed) / 8

    def _next_part(self) -> _Part | None:
        """Wait for work; None after a while without."""
        with self._changed:
            while not self._parts:
                self._idle += 1
                woken = self._changed.wait(_IDLE)
                self._idle -= 1
                if not woken and not self._parts:
                    self._threads -= 1
                    return None
            return self._parts.popleft()


_connections = Connections()


class StreamReader:
    """A remote file, read by ranges as they are asked for; see `storage.RangeReader`."""

    mode = "stream"

    def __init__(self, remote: HubFile) -> None:
        self._remote = remote

    def begin(
        self, offset: int, length: int, buffer: memoryview, stop: threading.Event
    ) -> RemoteRead:
        """Begin a read; see `storage.EarlyReader`."""
        return _connections.begin(self._remote, offset, buffer[:length], stop)

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Move the bytes to the start of the buffer."""
        return self.begin(offset, length, buffer, threading.Event()).wait()

    def close(self) -> None:
        """Do nothing: connections are shared."""
