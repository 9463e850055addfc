"""The floor: the inputs' bytes read and the output's bytes written at once, and nothing else.

    python -m benchmarks.floor model_a model_b --out /tmp/floor.bin --mode direct [--times 2]

No merge can be faster on this disk. A reader thread per model fills buffers, the writer takes one
of each model, writes the first and hands all back: a merge's pipeline with the merge left out. The
modes are the ways of moving bytes; the floor is the fastest of those that fit the state of the
page cache:

    direct       O_DIRECT both ways; the page cache is neither used nor filled
    buffered     preadv and pwrite through the page cache, writeback started behind the writer
    warm         mapped inputs that lie in the cache, each byte touched once; direct write
    warm-preadv  cached inputs copied out by preadv; direct write

A merge that has to measure its inputs first reads them several times: `--times` is how often the
inputs are read, one time after the other.

Prints JSON: seconds, and bytes read and written.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

MODES = ("direct", "buffered", "warm", "warm-preadv")
CHUNK = 8 * 2**20
SLOTS = 3  # buffers a model: one being read, one waiting, one being written
_ALIGNMENT = 4096
_SCRATCH = 256 * 1024  # stays in the L2 cache: touching a mapping costs its reads alone
_MADV_POPULATE_READ = 22
_START_WRITEBACK = 2  # SYNC_FILE_RANGE_WRITE
_LIBC = ctypes.CDLL(None, use_errno=True)
_DIRECT = getattr(os, "O_DIRECT", 0)

Buffer = mmap.mmap
Channel = queue.SimpleQueue[Buffer | None]


def weight_files(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def _new_buffer() -> Buffer:
    # Python's default, shared anonymous memory, gets no huge pages and counts as shmem.
    buffer = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return buffer


def _fill(file: Path, mode: str, free: Channel) -> Iterator[Buffer]:
    """Read a file chunk by chunk into buffers taken from `free`."""
    fd = os.open(file, os.O_RDONLY | (_DIRECT if mode == "direct" else 0))
    try:
        for offset in range(0, os.fstat(fd).st_size, CHUNK):
            buffer = free.get()
            assert buffer is not None
            os.preadv(fd, [buffer], offset)
            yield buffer
    finally:
        os.close(fd)


def _touch(file: Path, free: Channel) -> Iterator[Buffer]:
    """Read every byte of a mapped file without keeping any: memory traffic, no copy."""
    scratch = ctypes.create_string_buffer(_SCRATCH)
    with file.open("rb") as stream:
        # ACCESS_COPY only because ctypes takes addresses of writable mappings alone.
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    size = len(mapping)
    view = (ctypes.c_char * size).from_buffer(mapping)
    base = ctypes.addressof(view)
    for offset in range(0, size, CHUNK):
        buffer = free.get()
        end = min(offset + CHUNK, size)
        _LIBC.madvise(ctypes.c_void_p(base + offset), end - offset, _MADV_POPULATE_READ)
        for at in range(offset, end, _SCRATCH):
            ctypes.memmove(scratch, base + at, min(_SCRATCH, end - at))
        assert buffer is not None
        yield buffer
    del view
    mapping.close()


class Reader(threading.Thread):
    """Reads one model's files in order, `SLOTS` chunks ahead of the writer."""

    def __init__(self, files: list[Path], mode: str) -> None:
        super().__init__(daemon=True)
        self.files, self.mode = files, mode
        self.free: Channel = queue.SimpleQueue()
        self.full: Channel = queue.SimpleQueue()
        self.error: OSError | None = None
        for _ in range(SLOTS):
            self.free.put(_new_buffer())

    def run(self) -> None:
        try:
            for file in self.files:
                touch = self.mode == "warm"
                chunks = _touch(file, self.free) if touch else _fill(file, self.mode, self.free)
                for buffer in chunks:
                    self.full.put(buffer)
        except OSError as error:
            self.error = error
        self.full.put(None)


def run_floor(models: list[list[Path]], out: Path, mode: str, times: int = 1) -> float:
    """Seconds to read all models so many times and write one model's worth of bytes, durably."""
    size = sum(file.stat().st_size for file in models[0])
    direct = mode != "buffered"
    start = time.perf_counter()
    readers = [Reader(files * times, mode) for files in models]
    fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (_DIRECT if direct else 0), 0o644)
    try:
        if direct and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, size)  # or each write of O_DIRECT would allocate and wait
        for reader in readers:
            reader.start()
        _write(fd, size, readers, direct)
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
    return time.perf_counter() - start


def _write(fd: int, size: int, readers: list[Reader], direct: bool) -> None:
    """Take a chunk of every model, write the first, hand all back; until all are read."""
    offset, running = 0, list(readers)
    while running:
        filled = [(reader, reader.full.get()) for reader in running]
        for reader, buffer in filled:
            if buffer is None:
                running.remove(reader)
                if reader.error is not None:
                    raise reader.error
                continue
            if offset < size:
                offset += _write_chunk(fd, buffer, offset, size - offset, direct)
            reader.free.put(buffer)


def _write_chunk(fd: int, buffer: Buffer, offset: int, left: int, direct: bool) -> int:
    length = min(CHUNK, left)
    if direct:
        length = -(-length // _ALIGNMENT) * _ALIGNMENT  # cut off by ftruncate at the end
    with memoryview(buffer) as view, view[:length] as part:
        written = os.pwritev(fd, [part], offset)
    if not direct and hasattr(_LIBC, "sync_file_range"):
        at, count = ctypes.c_int64(offset), ctypes.c_int64(written)
        _LIBC.sync_file_range(fd, at, count, _START_WRITEBACK)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders or files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mode", choices=MODES, default="direct")
    parser.add_argument("--times", type=int, default=1, help="how often the models are read")
    args = parser.parse_args()
    if args.mode != "buffered" and not _DIRECT:
        sys.exit("this system has no O_DIRECT")
    models = [weight_files(path) for path in args.models]
    try:
        seconds = run_floor(models, args.out, args.mode, args.times)
    except OSError as error:
        sys.exit(f"{args.mode}: {error}")
    read = args.times * sum(file.stat().st_size for files in models for file in files)
    written = args.out.stat().st_size
    print(json.dumps({"mode": args.mode, "seconds": seconds, "read": read, "written": written}))


if __name__ == "__main__":
    main()
