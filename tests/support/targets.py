"""Every kind of output behind one face, so that one suite of tests holds for all of them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.buffers import allocate
from streammerge.checks.digests import Digester
from streammerge.outputs import Target, WrittenShard
from streammerge.outputs.directory import STAGING
from streammerge.outputs.targets import open_output
from streammerge.plan import Plan
from streammerge.storage import ALIGNMENT
from tests.support.checkpoints import add_side_files
from tests.support.hub import Hub
from tests.support.merging import write_all
from tests.support.outputs import sha256

REPO = "me/merged"
KINDS = ("directory", "hub", "directory, then hub")
SHARDS = {"max_shard_size": "45kB", "memory": "300MiB"}
SHAPES = {"a.weight": (300, 70), "b.weight": (301, 70), "c.weight": (302, 70), "d.bias": (9,)}
View = dict[str, bytes]


@dataclass(frozen=True)
class Merged:
    """A merge that was carried out into a folder: what any output must come to hold."""

    models: list[str]
    plan: Plan
    folder: Path

    @property
    def shards(self) -> list[WrittenShard]:
        paths = [self.folder / shard.file for shard in self.plan.shards]
        return [WrittenShard(p.name, p.stat().st_size, sha256(p)) for p in paths]

    @property
    def documents(self) -> View:
        weights = {shard.file for shard in self.plan.shards}
        return {name: data for name, data in files_of(self.folder).items() if name not in weights}

    @property
    def last(self) -> str:
        return "model.safetensors.index.json"


def merge_once(folder: Path, seed: int = 0) -> Merged:
    """Two small models with side files, and their average in several shards."""
    tensors = [
        {
            name: torch.randn(shape, generator=torch.Generator().manual_seed(seed + i + 10 * m))
            for i, (name, shape) in enumerate(SHAPES.items())
        }
        for m in range(2)
    ]
    halves = [{name: t.half() for name, t in model.items()} for model in tensors]
    models = [str(add_side_files(path)) for path in write_all(folder, halves)]
    streammerge.average(models, folder / "whole", **SHARDS)
    plan = streammerge.plan_average(models, folder / "unused", **SHARDS)
    return Merged(models, plan, folder / "whole")


def files_of(folder: Path) -> View:
    """What a loader finds in a folder; what lies in the staging folder it never looks at."""
    found = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
    names = {p: p.relative_to(folder).as_posix() for p in found}
    return {name: p.read_bytes() for p, name in names.items() if STAGING not in name}


def files_on(hub: Hub, repo: str = REPO, revision: str = "main") -> View:
    """What a loader finds in a repository; nothing where there is none."""
    if repo not in hub.repositories:
        return {}
    return {path: hub.read(repo, path, revision) for path in hub.files(repo, revision)}


@dataclass(frozen=True)
class Place:
    """Where an output of a kind puts its files, and everything a loader may find there."""

    kind: str
    make: Callable[[], Target]
    views: Callable[[], list[View]]
    staged: Callable[[], list[Path]]

    def settle(self) -> None:
        """Wait until what was finished can be kept: on the Hub, until it is sent."""
        end = time.monotonic() + 30
        while self.kind == "hub" and self.staged():
            assert time.monotonic() < end, "nothing is sent"
            time.sleep(0.01)


def place_of(kind: str, folder: Path, hub: Hub, merged: Merged) -> Place:
    """The place of a kind of output in an empty folder, or on an empty Hub."""
    out = folder / "out"
    if kind == "directory":
        return Place(
            kind,
            lambda: open_output(out, merged.models, True),
            lambda: [files_of(out)],
            lambda: sorted(out.rglob("*.partial")),
        )
    cache = Path(os.environ["HF_HOME"])
    if kind == "hub":
        return Place(
            kind,
            lambda: open_output(f"hf://{REPO}", merged.models, True),
            lambda: [files_on(hub)],
            lambda: sorted(cache.rglob("*.partial")),
        )
    return Place(
        kind,
        lambda: open_output(out, merged.models, True, push_to_hub=REPO),
        lambda: [files_of(out), files_on(hub)],
        lambda: sorted(out.rglob("*.partial")),
    )


def write_shard(target: Target, merged: Merged, shard: WrittenShard, shuffle: int = 0) -> None:
    """Write a shard by stretches in an order of chance, and say that it is complete."""
    content = (merged.folder / shard.file).read_bytes()
    file = target.create(shard.file, len(content))
    window = 4 * ALIGNMENT
    buffer = allocate(window)
    offsets = list(range(0, len(content), window))
    random.Random(shuffle).shuffle(offsets)
    for offset in offsets:
        piece = content[offset : offset + window]
        buffer[: len(piece)] = piece
        file.write(offset, buffer, len(piece))
    file.finish()
    file.close()
    target.complete(shard)


def write_all_shards(target: Target, merged: Merged, kept: list[WrittenShard]) -> None:
    """Write every shard that is not there yet."""
    for number, shard in enumerate(merged.shards):
        if shard not in kept:
            write_shard(target, merged, shard, shuffle=number)


def publish(target: Target, merged: Merged) -> None:
    """Publish the shards with the documents of the merge."""
    target.publish(merged.documents, merged.last)


def carry_out(place: Place, merged: Merged) -> Target:
    """The whole way of an output."""
    target = place.make()
    target.check()
    write_all_shards(target, merged, target.begin(merged.plan))
    publish(target, merged)
    return target


def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read to be hashed, from now on."""
    files: list[str] = []
    original = Digester.digest

    def digest(self: Digester, storage: Any, file: str, *rest: Any) -> str:
        files.append(file)
        return original(self, storage, file, *rest)

    monkeypatch.setattr(Digester, "digest", digest)
    return files
