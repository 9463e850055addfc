"""A folder on this machine as the target.

Shards grow in a hidden folder inside OUT, on the same file system, under names no loader knows.
Only when every byte of every file is durable are they renamed to OUT, the file that a loader looks
for first (the index, or the single weight file) last. An older output stays whole until then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from streammerge.errors import DiskSpaceError, OutputError, listing
from streammerge.formats.side_files import is_side_file
from streammerge.outputs.shardfile import DirectoryShard, write_error
from streammerge.plan import Plan
from streammerge.tensors import format_size

STAGING = ".streammerge-partial"
REPLACED = "replaced"
_OWN_FILES = ("README.md", "streammerge.json", ".gitattributes")
_SPARE = 16_000_000  # bytes left free for config, tokenizer and the file system itself
_T = TypeVar("_T")


class DirectoryOutput:
    """Writes to a folder; see `outputs.Output`."""

    def __init__(self, out: Path, inputs: list[Path], overwrite: bool) -> None:
        """Prepare to write to a folder, touching nothing yet.

        Args:
            out: the folder; made if it is not there.
            inputs: files and folders that must not be written to.
            overwrite: whether an older checkpoint in the folder may be replaced.
        """
        self.label = str(out)
        self._out, self._staging = out, out / STAGING
        self._inputs, self._overwrite = inputs, overwrite
        self._made: list[Path] = []
        self._old: list[Path] = []
        self._shards: list[str] = []
        self._moved: list[tuple[Path, Path]] = []

    def check(self) -> None:
        """Refuse a folder that is an input's, or whose content must not be replaced.

        Raises:
            OutputError: with the reason and the remedy.
        """
        out = self._out.resolve()
        for path in self._inputs:
            folder = path.resolve() if path.is_dir() else path.resolve().parent
            if out == folder or folder in out.parents or out in folder.parents:
                raise OutputError(
                    f"the output {self.label} is, contains or lies inside the input {path}",
                    "Choose an output folder apart from every input: inputs are never touched.",
                )
        if self._out.exists() and not self._out.is_dir():
            raise OutputError(f"{self.label} is a file", "Give the path of a folder.")
        present = (
            [p for p in self._out.iterdir() if p.name != STAGING] if self._out.is_dir() else []
        )
        if present and not self._overwrite:
            raise OutputError(
                f"the output folder {self.label} is not empty",
                "Choose another folder, or give --overwrite to replace the checkpoint in it.",
            )
        self._old = [path for path in present if _belongs_to_a_checkpoint(path)]
        foreign = sorted(path.name for path in present if path not in self._old)
        if foreign:
            raise OutputError(
                f"{self.label} holds more than a checkpoint, so it is not replaced:\n"
                f"{listing(foreign)}",
                "Choose another folder, or move these files away first.",
            )

    def begin(self, plan: Plan) -> None:
        """Check the folder and its disk, and make the staging folder; see `Output`."""
        self.check()
        self.check_space(plan)
        self._attempt("make the folder", self._out, self._make_folders)

    def check_space(self, plan: Plan) -> None:
        """Refuse an output that does not fit on the disk.

        Raises:
            DiskSpaceError: with what is needed and what is free.
        """
        existing = next(
            p for p in (self._out.absolute(), *self._out.absolute().parents) if p.exists()
        )
        free = shutil.disk_usage(existing).free + _size_below(self._staging)
        needed = plan.nbytes + _SPARE
        if needed > free:
            raise DiskSpaceError(
                f"the output needs {format_size(needed)}, {existing} has {format_size(free)} free",
                "Free some space, choose a folder on another disk, or a smaller --dtype.",
            )

    def _make_folders(self) -> None:
        for path in reversed([self._out, *self._out.parents]):
            if not path.exists():
                path.mkdir()
                self._made.append(path)
        shutil.rmtree(self._staging, ignore_errors=True)  # of an earlier run that was killed
        self._staging.mkdir()

    def create(self, file: str, size: int) -> DirectoryShard:
        """Begin a shard; see `Output`."""
        path = self._staging / f"{file}.partial"
        self._shards.append(file)
        return self._attempt("create", path, lambda: DirectoryShard(path, size))

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Give everything its final name; see `Output`."""
        self._attempt("publish", self._out, lambda: self._publish(documents, last))

    def _publish(self, documents: Mapping[str, bytes], last: str) -> None:
        folders = {self._out, self._staging}
        for name, content in documents.items():
            staged = self._staging / name
            staged.parent.mkdir(parents=True, exist_ok=True)
            folders |= {staged.parent, (self._out / name).parent}
            with open(staged, "wb") as document:
                document.write(content)
                document.flush()
                os.fsync(document.fileno())
        for file in self._shards:
            os.rename(self._staging / f"{file}.partial", self._staging / file)
        _sync_folders(path for path in folders if path.is_dir())
        names = [name for name in (*documents, *self._shards) if name != last]
        try:
            self._swap([*names, last], folders)
        except BaseException:
            self._swap_back()
            raise
        shutil.rmtree(self._staging)

    def _swap(self, names: list[str], folders: set[Path]) -> None:
        """Move the old output aside and the new one to its place, each step undone by another."""
        aside = self._staging / REPLACED
        aside.mkdir()
        # What makes a folder loadable goes first and comes last.
        for path in sorted(self._old, key=lambda path: not path.name.endswith(".index.json")):
            self._move(path, aside / path.name)
        for name in names:
            if name == names[-1]:
                _sync_folders(path for path in folders if path.is_dir())
            self._move(self._staging / name, self._out / name)
        _sync_folders([self._out])

    def _move(self, source: Path, target: Path) -> None:
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True)
        os.rename(source, target)
        self._moved.append((source, target))

    def _swap_back(self) -> None:
        for source, target in reversed(self._moved):
            with contextlib.suppress(OSError):  # the first error is the one to tell
                os.rename(target, source)
                if target.parent != self._out:
                    target.parent.rmdir()

    def abandon(self) -> None:
        """Remove the staging folder, and OUT where `begin` made it."""
        aside = self._staging / REPLACED
        if aside.is_dir() and any(aside.iterdir()):
            return  # the old output could not be moved back: it is not ours to delete
        shutil.rmtree(self._staging, ignore_errors=True)
        for path in reversed(self._made):
            try:
                path.rmdir()
            except OSError:  # somebody put something there
                return

    def _attempt(self, what: str, path: Path, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except OSError as error:
            raise write_error(what, path, error) from error


def _belongs_to_a_checkpoint(path: Path) -> bool:
    """Whether a file or folder in an output may be replaced by a new checkpoint."""
    name = path.name
    if path.is_dir() and not path.is_symlink():
        return all(
            is_side_file(f"{name}/{p.name}") or p.name == "config.json" for p in path.iterdir()
        )
    weights = name.endswith((".safetensors", ".safetensors.index.json"))
    return weights or is_side_file(name) or name.endswith(".py") or name in _OWN_FILES


def _size_below(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


def _sync_folders(paths: Iterable[Path]) -> None:
    """Make the names in folders durable (a no-op where folders cannot be opened)."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
