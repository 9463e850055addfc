"""The moment an output becomes visible: a list of renames, written down before the first of them.

Interrupted at any point, the renames are undone from that list by the next run, newest first. So a
folder holds the old output or the new one, or one that no loader takes, and nothing is ever lost.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from streammerge.outputs.shardfile import named, replace_file

MOVES = "publishing.json"
REPLACED = "replaced"


class Publication:
    """Renames within one folder.

    Args:
        out: the folder.
        staging: the folder inside it where the new files lie.
    """

    def __init__(self, out: Path, staging: Path) -> None:
        self._out, self._staging = out, staging

    def publish(self, old: Iterable[Path], new: dict[str, str], last: str) -> None:
        """Move the old files aside and the new ones to their places; then drop the old ones.

        Args:
            old: what lies in the folder and is replaced.
            new: final name by name in the staging folder, all of them synced.
            last: the final name that makes the folder loadable.

        Raises:
            OSError: a rename failed; those before it are undone.
        """
        staging = self._staging.name
        # What makes a folder loadable goes first and comes last.
        aside = sorted((path.name for path in old), key=_rank)
        moves = [(name, f"{staging}/{REPLACED}/{name}") for name in aside]
        ordered = sorted(new.items(), key=lambda item: item[1] == last)
        moves += [(f"{staging}/{source}", target) for source, target in ordered]
        (self._staging / REPLACED).mkdir(exist_ok=True)
        replace_file(self._staging / MOVES, json.dumps(moves).encode())
        sync_folders([self._staging, *(path for path in self._staging.rglob("*") if path.is_dir())])
        try:
            for source, target in moves:
                (self._out / target).parent.mkdir(parents=True, exist_ok=True)
                if target == last:
                    sync_folders(self._folders(moves))
                os.rename(self._out / source, self._out / target)
            sync_folders(self._folders(moves))
        except BaseException:
            with contextlib.suppress(OSError):  # the list stays, and the next run undoes it
                self.undo()
            raise
        (self._staging / MOVES).unlink()
        shutil.rmtree(self._staging)

    def _folders(self, moves: list[tuple[str, str]]) -> list[Path]:
        return sorted({(self._out / target).parent for _, target in moves} | {self._out})

    def targets(self) -> set[str]:
        """Return the top-level names that an interrupted publication may have made."""
        return {PurePosixPath(target).parts[0] for _, target in self._written_down()}

    def undo(self) -> None:
        """Undo the renames of an interrupted publication; does nothing where there was none.

        Raises:
            OSError: a rename failed; the list stays for another try.
        """
        moves = self._written_down()
        for source, target in reversed(moves):
            if (self._out / target).exists() and not (self._out / source).exists():
                os.rename(self._out / target, self._out / source)
                folder = (self._out / target).parent
                if folder not in (self._out, self._staging / REPLACED) and not any(
                    folder.iterdir()
                ):
                    folder.rmdir()
        if moves:
            sync_folders([self._out, self._staging])
            (self._staging / MOVES).unlink()

    def is_pending(self) -> bool:
        """Whether renames are written down that were neither finished nor undone."""
        return (self._staging / MOVES).exists()

    def _written_down(self) -> list[tuple[str, str]]:
        try:
            moves = json.loads((self._staging / MOVES).read_bytes())
            pairs = [(str(source), str(target)) for source, target in moves]
        except (OSError, ValueError, TypeError, RecursionError):
            return []
        inside = all(
            not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
            for pair in pairs
            for path in pair
        )
        return pairs if inside else []


def _rank(name: str) -> int:
    """Order the index before weights, and weights before all else."""
    return (name.endswith(".index.json"), name.endswith(".safetensors"), True).index(True)


def sync_folders(paths: Iterable[Path]) -> None:
    """Make the names in folders durable; a no-op where the system does that for files only."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows opens no folders
            continue
        try:
            with named(path):
                os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
                raise
        finally:
            os.close(fd)
