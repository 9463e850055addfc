"""The Checkpoint protocol, and from what a user writes to an open checkpoint.

Opening reads headers only. Everything after it sees a checkpoint as this protocol and knows nothing
of folders, shards or formats.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from streammerge.errors import CheckpointError, is_unicode, printable
from streammerge.formats.folder import SafetensorsCheckpoint
from streammerge.formats.safetensors import Location
from streammerge.storage import FileIdentity, IoMode, RangeReader
from streammerge.storage.local import LocalStorage
from streammerge.tensors import TensorInfo


class Checkpoint(Protocol):
    """Named tensors somewhere, read-only and lazy."""

    label: str
    """What the user wrote; names the checkpoint in messages."""
    tensors: dict[str, TensorInfo]
    """What it holds."""
    notes: list[str]
    """What a user should know about how it was opened."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json; empty where there is none."""

    def locate(self, name: str) -> Location:
        """Return where the bytes of a tensor lie: little-endian, contiguous, row-major."""

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Open one of the files that `locate` names."""

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return, for each weight file, its identity and the sha256 of its header."""

    def side_files(self) -> Mapping[str, int]:
        """Return path and size of each file besides weights that a loader needs."""

    def card(self) -> str:
        """Return README.md; empty where there is none."""

    def read_side_file(self, path: str) -> bytes:
        """Return the content of a side file."""


def open_checkpoint(reference: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder with weights, or a .safetensors file or index in one.

    Raises:
        CheckpointError: there is nothing there, or nothing that can be merged.
    """
    text = os.fspath(reference)
    if not is_unicode(text):
        raise CheckpointError(
            f"the path {printable(text)} is not Unicode and cannot be recorded",
            "Rename it, or give a symbolic link to it that has a plain name.",
        )
    try:
        path = Path(text)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError):  # ValueError: NUL in a path
        is_folder = is_file = False
    if is_folder:
        return SafetensorsCheckpoint(LocalStorage(text))
    if is_file:
        return SafetensorsCheckpoint(LocalStorage(path.parent), path.name)
    raise CheckpointError(
        f"there is no checkpoint at {text!r}", "Give the path of a folder or .safetensors file."
    )
