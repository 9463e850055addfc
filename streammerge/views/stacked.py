"""One checkpoint put together from tensors of others, under the names of the output.

So layers of several models in a row (a frankenmerge) are an input like any other, and nothing that
plans or executes a merge knows of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from streammerge.formats import Checkpoint
from streammerge.formats.safetensors import Location
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader
from streammerge.tensors import TensorInfo
from streammerge.views.wrapping import encode_json


class Stacked:
    """Tensors of several checkpoints as one; see `formats.Checkpoint`.

    Args:
        label: names it in messages.
        parts: for each tensor, by its new name, the checkpoint that has it and its name there.
        donor: the checkpoint whose config, tokenizer and so on it shows.
        config: the object to be shown as config.json instead of the donor's.
        notes: what a user should know about how it was put together.

    A file of a part is known here by the part's number and label, and its own name.
    """

    def __init__(
        self,
        label: str,
        parts: Mapping[str, tuple[Checkpoint, str]],
        donor: Checkpoint,
        config: Mapping[str, Any],
        notes: Sequence[str] = (),
    ) -> None:
        self.label, self.notes = label, list(notes)
        self._parts, self._donor, self._config = dict(parts), donor, config
        self.tensors: dict[str, TensorInfo] = {
            name: replace(checkpoint.tensors[original], name=name)
            for name, (checkpoint, original) in self._parts.items()
        }
        distinct = {id(checkpoint): checkpoint for checkpoint, _ in self._parts.values()}
        self._checkpoints = list(distinct.values())
        self._prefixes = {
            id(checkpoint): f"{number}:{checkpoint.label}/"
            for number, checkpoint in enumerate(self._checkpoints, start=1)
        }
        self.pinned = " + ".join(c.pinned for c in self._checkpoints if c.pinned)

    @property
    def scratch(self) -> int:
        """The most that any part needs: a thread reads from one at a time."""
        return max((checkpoint.scratch for checkpoint in self._checkpoints), default=0)

    @property
    def config(self) -> Mapping[str, Any]:
        """The donor's config, with as many layers as there are here."""
        return self._config

    def locate(self, name: str) -> Location:
        """Return where the bytes of a tensor lie; see the class for the file's name."""
        checkpoint, original = self._parts[name]
        location = checkpoint.locate(original)
        return replace(location, file=self._prefixes[id(checkpoint)] + location.file)

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Open one of the files that `locate` names."""
        checkpoint = self._checkpoints[int(file.partition(":")[0]) - 1]
        return checkpoint.open(file.removeprefix(self._prefixes[id(checkpoint)]), mode)

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what the parts need for these tensors."""
        wanted = [self._parts[name] for name in names]
        return [
            _Download(self._prefixes[id(checkpoint)] + download.file, download)
            for checkpoint in self._checkpoints
            for download in checkpoint.downloads(n for part, n in wanted if part is checkpoint)
        ]

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return the identities of all files of all parts."""
        return {
            self._prefixes[id(checkpoint)] + file: known
            for checkpoint in self._checkpoints
            for file, known in checkpoint.identity().items()
        }

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Return path and identity of the donor's side files."""
        files = dict(self._donor.side_files())
        if "config.json" in files and self._config != self._donor.config:
            size = len(self.read_side_file("config.json"))
            files["config.json"] = FileIdentity(size, f"as {self.label} has it")
        return files

    def card(self) -> str:
        """Return the donor's README.md."""
        return self._donor.card()

    def read_side_file(self, path: str) -> bytes:
        """Return the content of a side file; config.json as it is shown here."""
        if path == "config.json" and self._config != self._donor.config:
            return encode_json(self._config)
        return self._donor.read_side_file(path)


@dataclass(frozen=True, slots=True)
class _Download:
    """A download of a part, under the name that its file has here; see `storage.Download`."""

    file: str
    inner: Download

    @property
    def missing(self) -> int:
        """Bytes to be fetched."""
        return self.inner.missing

    @property
    def folder(self) -> Path:
        """Where it will lie."""
        return self.inner.folder

    def run(self, progress: Callable[[int], None], stop: Event) -> list[str]:
        """Fetch and check the file."""
        return self.inner.run(progress, stop)

    def cut(self) -> None:
        """Cut the connections of a `run` that was stopped."""
        self.inner.cut()
