"""bytes → checkpoint: the contract that every format, and every view of a checkpoint, keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from streammerge.formats.safetensors import Location
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader
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
    def scratch(self) -> int:
        """Bytes that a thread needs to read it, besides the buffers that it is given."""

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


def as_read(checkpoint: Checkpoint, name: str) -> TensorInfo:
    """Return a tensor as its bytes come: in a wider dtype where a view computes them.

    `Checkpoint.tensors` says what a user has and gets back: the dtype of the model. A view that
    adds something to a bf16 tensor hands out fp32, so that the only rounding is the merge's.
    """
    info, dtype = checkpoint.tensors[name], checkpoint.locate(name).dtype
    return replace(info, dtype=dtype) if dtype else info
