"""Two models in folders and the same two on the stand-in, to merge from here and from there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.storage import DownloadMode
from tests.support.checkpoints import like, random_tensors, write_checkpoint
from tests.support.hub import Hub

MODES: tuple[DownloadMode, ...] = ("cache", "stream")
IDS = ["org/a", "org/b"]
SIDE_FILES = {"README.md": "---\nlicense: mit\n---\n# A model\n", "tokenizer.json": "{}"}
SHAPES = ((300, 700), (7,), (3, 0, 5), (), (250_007,), (129, 33))


@dataclass(frozen=True)
class Pair:
    """Two models here and there, and their merge as it must come out.

    Attributes:
        folders: the models on this machine, not to be changed.
        weights: bytes of their weight files.
        merged: the merge of the folders.
        wanted: name → bytes of its weight files and index.
    """

    folders: list[Path]
    weights: int
    merged: Path
    wanted: dict[str, bytes]


@pytest.fixture(scope="session")
def local_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two models of about 1.8 MB, one of them in three shards in odd order."""
    root = tmp_path_factory.mktemp("pair")
    first = random_tensors(1, (torch.bfloat16, torch.float32), SHAPES)
    tensors = {"a": first, "b": like(first, 2)}
    layouts: dict[str, dict[str, Any]] = {"a": {"shards": 3, "shuffle": 5}, "b": {}}
    folders = []
    for name, model in tensors.items():
        folder = write_checkpoint(root / name, model, **layouts[name], config={"dtype": "bfloat16"})
        for file, text in SIDE_FILES.items():
            (folder / file).write_text(text)
        folders.append(folder)
    merged = root / "merged"
    streammerge.average(folders, merged)
    return Pair(folders, sum(map(size_of_weights, folders)), merged, weights_of(merged))


@pytest.fixture
def pair(local_pair: Pair, hub: Hub) -> Pair:
    """The two models, and the same two on the stand-in."""
    for repo, folder in zip(IDS, local_pair.folders, strict=True):
        hub.create(repo, folder)
    return local_pair


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
