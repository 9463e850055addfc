"""The Checkpoint protocol, and from what a user writes to an open checkpoint.

Opening reads headers only, on the Hub too. Everything after it sees a checkpoint as this protocol
and knows nothing of folders, shards, formats or networks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_args

from streammerge.errors import CheckpointError, HubError, RecipeError, UnsupportedError
from streammerge.formats.folder import SafetensorsCheckpoint
from streammerge.formats.safetensors import Location
from streammerge.references import HUB_SCHEME, Reference, parse_reference
from streammerge.storage import Download, DownloadMode, FileIdentity, IoMode, RangeReader
from streammerge.storage.local import LocalStorage
from streammerge.tensors import TensorInfo


class Checkpoint(Protocol):
    """Named tensors somewhere, read-only and lazy."""

    label: str
    """What the user wrote; names the checkpoint in messages."""
    pinned: str
    """A reference that means these very bytes for ever; "" for files on this machine."""
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

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what must happen before the bytes of these tensors can be read from here."""

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return, for each weight file, its identity and the sha256 of its header."""

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Return path and identity of each file besides weights that a loader needs."""

    def card(self) -> str:
        """Return README.md; empty where there is none."""

    def read_side_file(self, path: str) -> bytes:
        """Return the content of a side file."""


@dataclass(frozen=True, slots=True)
class HubAccess:
    """How models on the Hub are read.

    Attributes:
        download: "cache" keeps weights in the cache of huggingface_hub, "stream" nowhere.
        token: None for the one that is logged in.
    """

    download: DownloadMode = "cache"
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.download not in get_args(DownloadMode):
            raise RecipeError(f"download {self.download!r} is not known", "Choose cache or stream.")


def open_checkpoint(reference: str | os.PathLike[str], hub: HubAccess | None = None) -> Checkpoint:
    """Open a folder with weights or a .safetensors file or index in one, here or on the Hub.

    Args:
        reference: as `references` says.
        hub: for a repository on the Hub.

    Raises:
        CheckpointError: there is nothing there, or nothing that can be merged.
        HubError: the Hub refuses or cannot be reached.
    """
    found = parse_reference(os.fspath(reference))
    if found.adapter is not None:
        raise UnsupportedError(
            f"{found.text} names a LoRA adapter, {found.adapter.text}",
            "Apply it to its base model (`model.merge_and_unload()`), save, and merge the result.",
        )
    if not found.is_local:
        return _open_on_hub(found, hub or HubAccess())
    path = Path(found.path)
    if path.is_dir():
        return SafetensorsCheckpoint(LocalStorage(found.path))
    return SafetensorsCheckpoint(LocalStorage(path.parent), path.name)


def _open_on_hub(reference: Reference, hub: HubAccess) -> Checkpoint:
    from streammerge.storage.hub import HubStorage  # most merges do without

    folder, file = reference.subfolder, None
    if folder.endswith((".safetensors", ".json")):
        folder, _, file = folder.rpartition("/")
    try:
        storage = HubStorage(reference, folder, hub.download, hub.token)
    except HubError as error:
        if not reference.text.startswith(HUB_SCHEME) and not reference.revision:
            error.add_note("It was looked for on the Hub, since there is no such path here.")
        raise
    try:
        checkpoint = SafetensorsCheckpoint(storage, file)
    except CheckpointError as error:
        error.add_note(f"Looked at: {reference.repo_id} {storage.place}.")
        raise
    checkpoint.notes[:0] = storage.notes
    return checkpoint
