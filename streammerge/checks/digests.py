"""Is every byte as it was written? The sha256 of each file, read again from the disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from streammerge.buffers import allocate
from streammerge.checks import CheckProgress, Finding
from streammerge.errors import StreammergeError
from streammerge.outputs.manifest import Manifest
from streammerge.storage.local import LocalStorage
from streammerge.windows import room_for

BLOCK = 8 * 1024**2


class Digester:
    """Digests files in two buffers, one being read while the other is hashed.

    Reads go past the page cache where they can: what counts is on the disk, not in memory.
    """

    def __init__(self) -> None:
        self._buffers = [allocate(room_for(BLOCK)) for _ in range(2)]
        self._pool = ThreadPoolExecutor(1, "hasher")

    def digest(
        self, storage: LocalStorage, file: str, size: int, done: Callable[[int], None]
    ) -> str:
        """Return the sha256 of a file, telling `done` of every block.

        Raises:
            StreammergeError: the file cannot be read.
        """
        digest = hashlib.sha256()
        hashing: Future[None] | None = None
        reader = storage.open(file, "direct")
        try:
            for number, offset in enumerate(range(0, size, BLOCK)):
                length = min(BLOCK, size - offset)
                view = reader.fetch(offset, length, self._buffers[number % 2])
                if hashing is not None:
                    hashing.result()
                hashing = self._pool.submit(digest.update, view)
                done(length)
        finally:
            if hashing is not None:
                hashing.result()
            reader.close()
        return digest.hexdigest()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


def check_files(
    storage: LocalStorage,
    manifest: Manifest,
    progress: CheckProgress,
    trusted: Collection[str] = (),
) -> Iterator[Finding]:
    """Yield the files that are missing or are not what was written.

    Args:
        storage: the folder.
        manifest: what was written.
        progress: called with the bytes read.
        trusted: files that are not read; they must be there, and of the right size.
    """
    wanted = {shard.file: (shard.sha256, shard.bytes) for shard in manifest.shards}
    sizes: dict[str, int] = {}
    for file in (*wanted, *manifest.files):
        if not os.path.isfile(storage.path(file)):
            yield Finding(file, "is missing")
            continue
        sizes[file] = storage.identity(file).size
        if file in wanted and sizes[file] != wanted[file][1]:
            size = sizes.pop(file)
            yield Finding(file, f"has {size:,} bytes instead of {wanted[file][1]:,}")
        elif file in trusted:
            del sizes[file]
    total, digester = sum(sizes.values()), Digester()

    def done(nbytes: int) -> None:
        progress("checking", nbytes, total)

    try:
        for file, size in sizes.items():
            expected = wanted[file][0] if file in wanted else manifest.files[file]
            try:
                found = digester.digest(storage, file, size, done)
            except StreammergeError as error:
                yield Finding(file, error.message)
                continue
            if found != expected:
                yield Finding(file, f"was changed: its sha256 is {found}, not {expected}")
    finally:
        digester.close()
