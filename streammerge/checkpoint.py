"""From what a user writes to an open checkpoint.

Opening reads headers only. Everything after it sees a checkpoint as the protocol of `formats` and
knows nothing of folders, shards or formats.
"""

from __future__ import annotations

import os
from pathlib import Path

from streammerge.errors import CheckpointError
from streammerge.formats import Checkpoint, as_read
from streammerge.formats.folder import SafetensorsCheckpoint
from streammerge.storage.local import LocalStorage

__all__ = ["Checkpoint", "as_read", "open_checkpoint"]


def open_checkpoint(reference: str | os.PathLike[str]) -> Checkpoint:
    """Open a folder with weights, or a .safetensors file or index in one.

    Raises:
        CheckpointError: there is nothing there, or nothing that can be merged.
    """
    text = os.fspath(reference)
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
