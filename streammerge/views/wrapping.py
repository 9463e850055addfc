"""What all views of one checkpoint share: whatever they do not change, they pass on."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from streammerge.formats import Checkpoint
from streammerge.formats.safetensors import Location
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader

Content = Callable[[], bytes]


class Wrapping:
    """A checkpoint that is another one but for what a subclass changes.

    Args:
        base: the checkpoint behind it.
        label: how it is called; like the one behind it by default.
    """

    def __init__(self, base: Checkpoint, label: str | None = None) -> None:
        self.base = base
        self.label = base.label if label is None else label
        self.pinned = base.pinned
        self.tensors = dict(base.tensors)
        self.notes = list(base.notes)
        self._config = base.config
        self._moved: dict[str, Location] = {}
        self._files: dict[str, tuple[int, Content]] = {}
        self._hidden: set[str] = set()

    @property
    def scratch(self) -> int:
        """Bytes that a thread needs to read it; see `Checkpoint`."""
        return self.base.scratch

    @property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json, as changed."""
        return self._config

    def locate(self, name: str) -> Location:
        """Return where a tensor lies: in a virtual file, or where it lay before."""
        return self._moved.get(name) or self.base.locate(name)

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Open a file of the checkpoint behind; subclasses open their virtual ones."""
        return self.base.open(file, mode)

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return what the checkpoint behind is identified by; subclasses add their own."""
        return self.base.identity()

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what the checkpoint behind needs for these tensors."""
        return self.base.downloads(name for name in names if name in self.base.tensors)

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Return path and identity of each side file, as changed."""
        files = {p: i for p, i in self.base.side_files().items() if p not in self._hidden}
        changed = f"as {self.label} has it"
        return files | {p: FileIdentity(size, changed) for p, (size, _) in self._files.items()}

    def card(self) -> str:
        """Return README.md; empty where there is none."""
        return self.base.card()

    def read_side_file(self, path: str) -> bytes:
        """Return the content of a side file, as changed."""
        return self._files[path][1]() if path in self._files else self.base.read_side_file(path)

    def put_file(self, path: str, size: int, content: Content) -> None:
        """Show a side file that the checkpoint behind lacks, or has with another content."""
        self._files[path] = (size, content)

    def hide_file(self, path: str) -> None:
        """Show a side file no more."""
        self._files.pop(path, None)
        self._hidden.add(path)

    def put_config(self, config: Mapping[str, Any]) -> None:
        """Show another config.json."""
        if config != self._config:
            self._config = config
            raw = encode_json(config)
            self.put_file("config.json", len(raw), lambda: raw)


def encode_json(value: Mapping[str, Any]) -> bytes:
    """Return JSON as Hugging Face writes it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def with_vocabulary(config: Mapping[str, Any], old: Collection[int], new: int) -> dict[str, Any]:
    """Return a config with another `vocab_size`, nested ones (of a text model) included.

    Args:
        config: the object in config.json.
        old: numbers of rows that the embedding may have had; any other `vocab_size` stays.
        new: rows that it has.
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        if key == "vocab_size" and isinstance(value, int) and value in old:
            result[key] = new
        else:
            result[key] = with_vocabulary(value, old, new) if isinstance(value, dict) else value
    return result
