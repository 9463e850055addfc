"""Finished files sent in the background, one after another, and the merge held back meanwhile.

What lies on the disk is bounded: a write waits while there is something to be sent and the bytes
written but not sent yet would pass the limit. With nothing to send it goes on, because then only
the windows in flight can finish a file; they are never more than half a shard ahead (`budget`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from threading import Event

from streammerge.outputs import WrittenShard

_PATIENCE = 3.0  # seconds that `stop` gives to the file being sent


class Uploads:
    """A queue of finished files and the thread that sends them.

    Args:
        send: sends a file and removes it from the disk; once the event is set, it tries no more.
        limit: bytes that may lie on the disk.
    """

    def __init__(self, send: Callable[[WrittenShard, Event], None], limit: int) -> None:
        self._send, self._limit = send, limit
        self._queue: deque[WrittenShard] = deque()
        self._held = 0
        self._pending = 0
        self._failure: BaseException | None = None
        self._stopped = Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="uploader", daemon=True)
        self._thread.start()

    def reserve(self, nbytes: int) -> None:
        """Wait until so many bytes more may be written.

        Raises:
            BaseException: what ended the uploads.
        """
        with self._changed:
            while self._pending and self._held + nbytes > self._limit and not self._is_over():
                self._changed.wait()
            self._raise()
            self._held += nbytes

    def put(self, shard: WrittenShard) -> None:
        """Have a finished file sent."""
        with self._changed:
            self._raise()
            self._queue.append(shard)
            self._pending += 1
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until everything is sent.

        Raises:
            BaseException: what ended the uploads.
        """
        with self._changed:
            while self._pending and not self._is_over():
                self._changed.wait()
            self._raise()

    def stop(self) -> None:
        """Send nothing more, and let whoever waits go on; returns at once."""
        with self._changed:
            self._stopped.set()
            self._changed.notify_all()

    def join(self) -> None:
        """After `stop`: wait a little for the file being sent, which is else left to its thread."""
        self._thread.join(_PATIENCE)

    def _is_over(self) -> bool:
        return self._stopped.is_set() or self._failure is not None

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _loop(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self._send(shard, self._stopped)
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._held -= shard.bytes
                self._pending -= 1
                self._changed.notify_all()

    def _next(self) -> WrittenShard | None:
        with self._changed:
            while not self._queue and not self._stopped.is_set():
                self._changed.wait()
            return None if self._stopped.is_set() else self._queue.popleft()
