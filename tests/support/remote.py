"""Two models in folders and the same two on the stand-in, to merge from here and from there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import streammerge
from streammerge.storage import DownloadMode
from tests.support.checkpoints import add_side_files, like, random_tensors, write_checkpoint
from tests.support.hub import Hub

MODES: tuple[DownloadMode, ...] = ("cache", "stream")
IDS = ["org/a", "org/b"]
SHAPES = ((300, 700), (7,), (3, 0, 5), (), (250_007,), (129, 33))


@dataclass(frozen=True)
class Pair:
    """Two models here and there, and their merge as it must come out.

    Attributes:
        folders: the models on this machine.
        weights: bytes of their weight files.
        wanted: name → bytes of the weight files and index that merging the folders gives.
    """

    folders: list[Path]
    weights: int
    wanted: dict[str, bytes]


def make_pair(root: Path, hub: Hub, **options: Any) -> Pair:
    """Write two models of about 1.8 MB, one in three shards, and commit them to the stand-in."""
    first = random_tensors(1, (torch.bfloat16, torch.float32), SHAPES)
    tensors = {"a": first, "b": like(first, 2)}
    layouts: dict[str, dict[str, Any]] = {"a": {"shards": 3, "shuffle": 5}, "b": {}}
    folders = []
    for name, model in tensors.items():
        folder = add_side_files(write_checkpoint(root / name, model, **layouts[name]))
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        hub.create(f"org/{name}", folder)
        folders.append(folder)
    streammerge.average(folders, root / "wanted", **options)
    return Pair(folders, sum(map(size_of_weights, folders)), weights_of(root / "wanted"))


def size_of_weights(folder: Path) -> int:
    """Bytes of the .safetensors files in a folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def weights_of(folder: Path) -> dict[str, bytes]:
    """Content of the weight files and of the index in a folder."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors*"))}


def manifest_of(out: Path) -> dict[str, Any]:
    """streammerge.json as it stands."""
    loaded: dict[str, Any] = json.loads((out / "streammerge.json").read_bytes())
    return loaded
