"""What a hostile file may cost: a second of computing and 50 MB, whatever else the machine does."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable

from streammerge.errors import StreammergeError

SECONDS, BYTES = 1.0, 50_000_000


def survives(read: Callable[[bytes], None], data: bytes) -> None:
    """Read hostile bytes: with a typed error or none, in bounded time and memory."""
    tracemalloc.start()
    try:
        begin = time.thread_time()
        with contextlib.suppress(StreammergeError):
            read(data)
        seconds = time.thread_time() - begin
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Tracing makes it up to four times as slow, so only what takes long is timed once more.
    if seconds > SECONDS:
        begin = time.thread_time()
        with contextlib.suppress(StreammergeError):
            read(data)
        seconds = time.thread_time() - begin
    assert seconds < SECONDS, f"{len(data):,} bytes took {seconds:.2f} s"
    assert peak < BYTES, f"{len(data):,} bytes took {peak:,} bytes of memory"
