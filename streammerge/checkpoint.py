"""From what a user writes to an open checkpoint.

Opening reads headers only, on the Hub too. Everything after it sees a checkpoint as the protocol of
`formats` and knows nothing of folders, shards, formats or networks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from streammerge.errors import CheckpointError, HubError, RecipeError, is_unicode, printable
from streammerge.formats import Checkpoint, as_read
from streammerge.formats.folder import SafetensorsCheckpoint
from streammerge.references import HUB_SCHEME, Reference, parse_reference
from streammerge.storage import DownloadMode, Storage
from streammerge.storage.local import LocalStorage
from streammerge.views.lora import LoraApplied

__all__ = ["Checkpoint", "HubAccess", "as_read", "open_checkpoint"]


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
    text = os.fspath(reference)
    if not is_unicode(text):
        raise CheckpointError(
            f"the path {printable(text)} is not Unicode and cannot be recorded",
            "Rename it, or give a symbolic link to it that has a plain name.",
        )
    found, access = parse_reference(text), hub or HubAccess()
    if found.adapter is None:
        return _open_model(found, access)
    alone = text.removesuffix(f"+{found.adapter.text}")
    base = _open_model(replace(found, text=alone, adapter=None), access)
    return LoraApplied(base, _storage(found.adapter, access))


def _open_model(found: Reference, access: HubAccess) -> Checkpoint:
    if not found.is_local:
        return _open_on_hub(found, access)
    if os.path.isdir(found.path):
        return SafetensorsCheckpoint(LocalStorage(found.path))
    path = Path(found.path)
    return SafetensorsCheckpoint(LocalStorage(path.parent), path.name)


def _storage(adapter: Reference, access: HubAccess) -> Storage:
    if adapter.is_local:
        return LocalStorage(adapter.path)
    from streammerge.storage.hub import HubStorage  # most merges do without

    return HubStorage(adapter, adapter.subfolder, access.download, access.token)


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
