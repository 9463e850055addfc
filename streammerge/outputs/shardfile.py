"""One shard on this machine's disk: preallocated, written at offsets, made durable."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from streammerge.errors import OutputError, printable
from streammerge.storage import ALIGNMENT


class DirectoryShard:
    """One shard file, written past the page cache where that is possible.

    Args:
        path, size: of the file.
        reserve: take the room on the disk at once.
    """

    def __init__(self, path: Path, size: int, reserve: bool = True) -> None:
        self._path, self._size = path, size
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0)
        try:
            self._fd = os.open(path, flags | os.O_DIRECT, 0o666)
        except (AttributeError, OSError):
            self._fd = os.open(path, flags, 0o666)
        try:
            if reserve and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                os.close(self._fd)
                raise

    def write(self, offset: int, buffer: memoryview, length: int) -> None:
        """Write a stretch of the file; see `ShardFile`."""
        rounded = -(-length // ALIGNMENT) * ALIGNMENT
        done = 0
        while done < length:
            try:
                done += os.pwrite(self._fd, buffer[done:rounded], offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._leave_direct_mode():
                    raise write_error("write", self._path, error) from error

    def _leave_direct_mode(self) -> bool:
        """Go on through the page cache where the device wants another alignment."""
        import fcntl  # not on Windows, which has no direct mode to leave either

        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        direct = getattr(os, "O_DIRECT", 0)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~direct)
        return bool(flags & direct)

    def finish(self) -> None:
        """Cut the padding off and make the file durable."""
        try:
            os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
        except OSError as error:
            raise write_error("sync", self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file so that its old or its new content is there, whatever happens.

    Raises:
        OSError: it could not be written; the old content is still there.
    """
    temporary = path.with_name(f"{path.name}.new")
    with named(temporary), open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put a path into errors of open files, in which the system says none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_error(what: str, path: Path, error: OSError) -> OutputError:
    """Return the error for a failed change of an output, or of a file in it."""
    remedy = "Check the disk and the permissions, then run the same command again."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Free some space or choose a folder on another disk, then run it again."
    file = os.fsdecode(error.filename or path)
    where = "" if os.path.basename(file) in str(path) else f" ({printable(file)})"
    return OutputError(f"cannot {what} {path}: {error.strerror}{where}", remedy)
