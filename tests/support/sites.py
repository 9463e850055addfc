"""A small merge in several layouts, to be interrupted, and what a whole run of each gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import streammerge
from tests.support.checkpoints import add_side_files, write_checkpoint
from tests.support.merging import write_all

SHAPES = {"a.weight": (300, 70), "b.weight": (301, 70), "c.weight": (302, 70), "d.bias": (9,)}
SHARDS = {"max_shard_size": "45kB", "memory": "300MiB"}


def inputs(folder: Path) -> list[str]:
    """Two models with side files."""
    tensors = [
        {
            name: torch.randn(shape, generator=torch.Generator().manual_seed(10 * seed + i)).half()
            for i, (name, shape) in enumerate(SHAPES.items())
        }
        for seed in (1, 2)
    ]
    paths = write_all(folder, tensors)
    for path in paths:
        add_side_files(path)
    return [str(path) for path in paths]


def merge(models: list[str], out: Path, **options: Any) -> streammerge.Result:
    """Average them into a few shards, unless the options say otherwise."""
    return streammerge.average(models, out, **{**SHARDS, **options})


def files(folder: Path) -> dict[str, bytes]:
    """Every file by its content, but for manifest and card, which name the command."""
    different = {"streammerge.json", "README.md"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in different
    }


def loadable(out: Path) -> bool:
    """Whether a loader would find weights in a folder."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return bool(names & {"model.safetensors", "model.safetensors.index.json"})


LAYOUTS: dict[str, dict[str, Any]] = {
    "one file": {"max_shard_size": "5GB"},
    "shards": {},
    "over an older output": {"overwrite": True},
    "many shards": {"max_shard_size": "1kB"},
    "many shards over an older output": {"max_shard_size": "1kB", "overwrite": True},
}


def make_site(folder: Path) -> Path:
    """Two models, an older output, and what each layout gives: m0, m1, old, "whole <layout>"."""
    models = inputs(folder)
    write_checkpoint(folder / "old", {"old.weight": torch.ones(4)}, shards=1)
    add_side_files(folder / "old")
    for layout, options in LAYOUTS.items():
        merge(models, folder / f"whole {layout}", **options)
    return folder
