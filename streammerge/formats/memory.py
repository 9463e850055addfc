"""Tensors that are in memory already, as a checkpoint: read in place, each as a file of its own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from streammerge.errors import CheckpointError
from streammerge.formats.safetensors import Location, encode_header
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader
from streammerge.tensors import TensorInfo


class StateDictCheckpoint:
    """A mapping of tensors; see `checkpoint.Checkpoint`.

    Args:
        label: names it in messages.
        tensors: what it holds, by name.
        readers: for each tensor, its bytes from offset 0. They need no torch here: who has the
            tensors knows how their bytes are reached.
    """

    def __init__(
        self, label: str, tensors: Mapping[str, TensorInfo], readers: Mapping[str, RangeReader]
    ) -> None:
        self.label = label
        self.tensors = dict(tensors)
        self.notes: list[str] = []
        self.pinned = ""
        self._readers = readers
        # Memory can change at any moment and is gone with the process, so no two openings are the
        # same version: nothing may ever be resumed or verified by this identity.
        self._version = f"memory-{secrets.token_hex(16)}"

    @property
    def scratch(self) -> int:
        """Nothing: its bytes are read in place."""
        return 0

    @property
    def config(self) -> Mapping[str, Any]:
        """Nothing: there is no config.json."""
        return {}

    def locate(self, name: str) -> Location:
        """Return the tensor's own virtual file, which begins with its first byte."""
        return Location(name, 0)

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Return the bytes of a tensor; there is one way to read them, whatever the mode."""
        return self._readers[file]

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return one entry for all tensors, of a version that never occurs again."""
        infos = list(self.tensors.values())
        size = sum(info.nbytes for info in infos)
        digest = hashlib.sha256(encode_header(infos)).hexdigest()
        return {"memory": (FileIdentity(size, self._version), digest)}

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Nothing: its bytes are there."""
        return []

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Nothing: memory has no files."""
        return {}

    def card(self) -> str:
        """Nothing: there is no README.md."""
        return ""

    def read_side_file(self, path: str) -> bytes:
        """Refuse: memory has no files."""
        raise CheckpointError(f"{self.label} is in memory and has no file {path!r}")
