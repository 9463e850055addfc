"""A folder on this machine as the target.

Shards grow in a hidden folder inside OUT, on the same file system, under names no loader knows, and
a journal there says which are finished. Only when every byte of every file is durable are they
renamed to OUT, the file that a loader looks for first (the index, or the single weight file) last.
An older output stays whole until then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

from streammerge.errors import DiskSpaceError, OutputError, is_unicode, listing, printable
from streammerge.formats.side_files import is_side_file
from streammerge.outputs import Pushed, WrittenShard
from streammerge.outputs.journal import JOURNAL, LOCK, Journal, partial_name, refusal
from streammerge.outputs.manifest import MANIFEST, is_whole, published
from streammerge.outputs.publishing import Publication
from streammerge.outputs.shardfile import DirectoryShard, replace_file, write_error
from streammerge.plan import Plan
from streammerge.storage.local import LocalStorage
from streammerge.tensors import format_size

STAGING = ".streammerge-partial"
_OWN_FILES = ("README.md", MANIFEST, ".gitattributes")
_SPARE = 16_000_000  # bytes left free for config, tokenizer and the file system itself
_T = TypeVar("_T")


class DirectoryOutput:
    """Writes to a folder; see `outputs.Target`."""

    pushed: Pushed | None = None

    needs_digest = True
    one_by_one = False

    def __init__(self, out: Path, inputs: list[Path], overwrite: bool) -> None:
        """Prepare to write to a folder, touching nothing yet.

        Args:
            out: the folder; made if it is not there.
            inputs: files and folders that must not be written to.
            overwrite: whether an older checkpoint in the folder may be replaced.
        """
        self.label, self.place = str(out), out
        self.progress: Callable[[int], None] = lambda nbytes: None
        self._out, self._staging = out, out / STAGING
        self._inputs, self._overwrite = inputs, overwrite
        self._made: list[Path] = []
        self._old: list[Path] = []
        self._shards: list[str] = []
        self._journal = Journal(self._staging)
        self._publication = Publication(self._out, self._staging)
        self._owns_staging = False
        self._is_published = False
        # A run that was killed after its last rename leaves a whole output with a staging folder.
        self._may_be_published = all(map(os.path.exists, (self._staging, out / MANIFEST)))

    def check(self) -> None:
        """Refuse a folder that is an input's, or whose content must not be replaced.

        Raises:
            OutputError: with the reason and the remedy.
        """
        self._attempt("look into", self._out, self._check)

    def _check(self) -> None:
        if not is_unicode(self.label):
            raise OutputError(
                f"the path {printable(self.label)} is not Unicode and cannot be recorded",
                "Choose a folder with a plain name.",
            )
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
        ours = {STAGING, *self._publication.targets()}
        present = [p for p in self._out.iterdir() if p.name not in ours] if out.is_dir() else []
        if present and not self._overwrite and not self._may_be_published:
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

    def begin(self, plan: Plan) -> list[WrittenShard]:
        """Check the folder and its disk, and make the staging folder; see `Output`."""
        self.check()
        self.check_space(plan)
        return self._attempt("prepare", self._staging, lambda: self._prepare(plan))

    def check_space(self, plan: Plan) -> None:
        """Refuse an output that does not fit on the disk.

        Raises:
            DiskSpaceError: with what is needed and what is free.
        """
        self._attempt("look into", self._out, lambda: self._check_space(plan))

    def _check_space(self, plan: Plan) -> None:
        if self._may_be_published and published(LocalStorage(self._out), plan):
            return
        folder = existing(self._out)
        free = shutil.disk_usage(folder).free + _size_below(self._staging)
        needed = plan.nbytes + _SPARE
        if needed > free:
            raise DiskSpaceError(
                f"the output needs {format_size(needed)}, {folder} has {format_size(free)} free",
                "Free some space, choose a folder on another disk, or a smaller --dtype.",
            )

    def space(self, plan: Plan) -> tuple[Path, int]:
        """Return the folder, and what is not written there yet."""
        written = self._attempt("look into", self._out, lambda: _size_below(self._staging))
        return self._out, plan.nbytes - written

    def bytes_to_send(self, plan: Plan) -> int:
        """Return 0: nothing leaves this machine."""
        return 0

    def _prepare(self, plan: Plan) -> list[WrittenShard]:
        for path in reversed([self._out, *self._out.parents]):
            if not path.exists():
                path.mkdir()
                self._made.append(path)
        self._staging.mkdir(exist_ok=True)
        self._journal.lock(self.label)
        self._publication.undo()
        if self._may_be_published and (whole := self._published_shards(plan)):
            self._owns_staging = self._is_published = True
            return whole
        self._may_be_published = False
        self.check()
        differences = self._journal.differences(plan)
        if differences and not self._overwrite:
            raise refusal(self.label, differences)
        self._owns_staging = True
        kept = self._journal.intact() if differences == [] else []
        self._clear_staging({partial_name(shard.file) for shard in kept})
        self._journal.begin(plan, kept)
        self._shards = [shard.file for shard in kept]
        return kept

    def _published_shards(self, plan: Plan) -> list[WrittenShard]:
        """Return the shards that lie in OUT, where that is all that the plan gives; else none."""
        manifest = published(LocalStorage(self._out), plan)
        if manifest is None or not is_whole(self._out, manifest):
            return []
        return [WrittenShard(s.file, s.bytes, s.sha256) for s in manifest.shards]

    def _clear_staging(self, keep: set[str]) -> None:
        for path in self._staging.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in {LOCK, *keep}:
                path.unlink()

    def create(self, file: str, size: int) -> DirectoryShard:
        """Begin a shard; see `Output`."""
        path = self._staging / partial_name(file)
        self._shards.append(file)
        return self._attempt("create", path, lambda: DirectoryShard(path, size))

    def complete(self, shard: WrittenShard) -> None:
        """Note a durable shard in the journal; see `Output`."""
        self._attempt("write", self._staging / JOURNAL, lambda: self._journal.add(shard))

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Give everything its final name; see `Output`."""
        self._attempt("publish", self._out, lambda: self._publish(documents, last))

    def _publish(self, documents: Mapping[str, bytes], last: str) -> None:
        if self._is_published:
            shutil.rmtree(self._staging)
            self._journal.release()
            return
        names = {partial_name(file): file for file in self._shards}
        for name, content in documents.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise OutputError(f"{name!r} lies outside the output", "Do not trust that model.")
            staged = self._staging / partial_name(name)
            staged.parent.mkdir(parents=True, exist_ok=True)
            replace_file(staged, content)
            names[partial_name(name)] = name
        self._publication.publish(self._old, names, last)
        self._journal.release()

    def stop(self) -> None:
        """Do nothing: writes do not wait here."""

    def abandon(self) -> bool:
        """End without publishing; see `Output`."""
        if not self._owns_staging:
            self._journal.release()
            return False
        resumable = not self._journal.is_empty()
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            if self._publication.is_pending():
                self._publication.undo()
            if resumable:
                finished = {partial_name(shard.file) for shard in self._journal.shards}
                self._clear_staging({JOURNAL, *finished})
            else:
                shutil.rmtree(self._staging)
                for path in reversed(self._made):
                    path.rmdir()
        self._journal.release()
        return resumable

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


def existing(path: Path) -> Path:
    """Return a path that is there: this one, or the nearest above it."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())


def _size_below(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())
