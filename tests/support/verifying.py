"""Small merges to be verified, and ways to damage or forge them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import streammerge
from streammerge.errors import ManifestError
from streammerge.outputs.manifest import encode_json
from tests.support.checkpoints import (
    Tensors,
    add_side_files,
    like,
    random_tensors,
    write_checkpoint,
)
from tests.support.outputs import manifest, sha256

MANIFEST = "streammerge.json"
SHARDS = 4


def small() -> Tensors:
    """A few tensors of several dtypes, empty and scalar ones among them."""
    return random_tensors(
        1, (torch.bfloat16, torch.float32, torch.int64), ((), (0,), (7,), (33, 9), (2, 3, 5))
    )


def merged(root: Path, tensors: Tensors | None = None, **options: Any) -> Path:
    """Average two models with side files, root/a and root/b; returns the output."""
    first = small() if tensors is None else tensors
    models = {"a": first, "b": like(first, 2)}
    paths = [add_side_files(write_checkpoint(root / n, m)) for n, m in models.items()]
    streammerge.average(paths, root / "out", weights=[2, 1], **options)
    return root / "out"


def merged_in_shards(root: Path) -> Path:
    """The same in `SHARDS` shards."""
    out = merged(root, max_shard_size="1KB")
    assert len(list(out.glob("*.safetensors"))) == SHARDS
    return out


def shard_name(number: int) -> str:
    """The name of a shard of `merged_in_shards`, counted from 1."""
    return f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def findings(out: Path, **options: Any) -> dict[str, str]:
    """What is found, by where."""
    found: dict[str, str] = {}
    for finding in streammerge.verify(out, **options).findings:
        found[finding.where] = f"{found.get(finding.where, '')}\n{finding.what}".strip()
    return found


def where_found(out: Path) -> set[str]:
    """Where something is found; a manifest that cannot be read counts as found there."""
    try:
        return set(findings(out))
    except ManifestError:
        return {MANIFEST}


def cut(path: Path) -> None:
    """Take the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    """Add a space at the end."""
    path.write_bytes(path.read_bytes() + b" ")


def edit(path: Path, old: str, new: str) -> None:
    """Replace text that is there, once."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swap(one: Path, other: Path) -> None:
    """Give each of two files the content of the other."""
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


def reseal(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a forger would: with a checksum that is right again."""
    content = manifest(out)
    del content["checksum"]
    change(content)
    content["checksum"] = hashlib.sha256(encode_json(content)).hexdigest()
    (out / MANIFEST).write_bytes(encode_json(content))


def reweigh(out: Path, weights: list[float]) -> None:
    """Give the models of the recipe in the manifest other weights."""

    def change(content: dict[str, Any]) -> None:
        for model, weight in zip(content["recipe"]["models"], weights, strict=True):
            model["parameters"]["weight"] = weight

    reseal(out, change)


def forge_tensors(out: Path, change: Callable[[Tensors], object]) -> None:
    """Change the tensors of the only shard; bytes, digest and counts are right again."""
    path = out / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    reseal(
        out,
        lambda content: content.update(
            shards=[{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}],
            tensors=len(tensors),
            parameters=sum(t.numel() for t in tensors.values()),
            bytes=sum(t.nbytes for t in tensors.values()),
        ),
    )
