"""`verify`: good outputs pass, and whatever is wrong with an output is found and named."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import streammerge
from streammerge.errors import ManifestError, RecipeError, StreammergeError
from streammerge.outputs.manifest import encode_json
from tests.support.checkpoints import (
    INDEX,
    Tensors,
    add_side_files,
    like,
    random_tensors,
    tiny_llama,
    write_checkpoint,
)
from tests.support.cli import in_process
from tests.support.merging import snapshot
from tests.support.outputs import manifest, sha256

Out = Path
SHAPES = ((), (0,), (7,), (33, 9), (2, 3, 5))
KINDS = (torch.bfloat16, torch.float32, torch.int64)


def merged(root: Path, tensors: Tensors | None = None, **options: Any) -> Out:
    """Average two small models with side files; returns the output."""
    first = tensors or random_tensors(1, KINDS, SHAPES)
    paths = [
        add_side_files(write_checkpoint(root / name, model))
        for name, model in (("a", first), ("b", like(first, 2)))
    ]
    streammerge.average(paths, root / "out", weights=[2, 1], **options)
    return root / "out"


@pytest.fixture
def single(tmp_path: Path) -> Out:
    return merged(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Out:
    return merged(tmp_path, max_shard_size="1KB")


def findings(out: Out, **options: Any) -> dict[str, str]:
    """What is found, by where."""
    found: dict[str, str] = {}
    for finding in streammerge.verify(out, **options).findings:
        found[finding.where] = f"{found.get(finding.where, '')}\n{finding.what}".strip()
    return found


def reseal(out: Out, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest as a forger would: with a checksum that is right again."""
    from streammerge.outputs.manifest import _checksum

    content = manifest(out)
    del content["checksum"]
    change(content)
    content["checksum"] = _checksum(content)
    (out / "streammerge.json").write_bytes(encode_json(content))


def forge_shard(out: Out, change: Callable[[Tensors], None]) -> None:
    """Change the only shard, and make its digest and size right again."""
    path = out / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    shard = {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    reseal(out, lambda content: content.update(shards=[shard]))


@pytest.mark.parametrize("shard_size", ["1GB", "1KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("recompute", [None, 3, "all"])
def test_a_good_output_passes(tmp_path: Path, shard_size: str, recompute: Any) -> None:
    out = merged(tmp_path, max_shard_size=shard_size)
    before = snapshot(tmp_path)
    done = streammerge.verify(out, recompute=recompute)
    assert done.findings == []
    assert done.ok
    assert done.tensors == len(random_tensors(1, KINDS, SHAPES))
    assert done.recomputed == {None: 0, 3: 3, "all": done.tensors}[recompute]
    assert done.shards == len(list(out.glob("*.safetensors")))
    assert done.shards + done.files == len([p for p in out.rglob("*") if p.is_file()])
    assert snapshot(tmp_path) == before


def test_a_merge_of_several_windows_is_computed_again(tmp_path: Path) -> None:
    tensors = random_tensors(1, shapes=((700, 1001), (300_000,), (100, 100), (3,)))
    out = merged(tmp_path, tensors, dtype="float32", max_shard_size="2MB")
    counted = []
    done = streammerge.verify(out, recompute="all", progress=lambda *args: counted.append(args))
    assert (done.findings, done.recomputed) == ([], 4)
    for stage in ("checking", "merging again"):
        steps = [step for step in counted if step[0] == stage]
        assert sum(nbytes for _, nbytes, _ in steps) == steps[0][2] > 0


def test_nonfinite_outputs_pass_where_they_were_allowed(tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([1.0, float("nan"), float("inf")])}
    out = merged(tmp_path, tensors, allow_nonfinite=True)
    assert findings(out, recompute="all") == {}


def flip_every_kind_of_byte(root: Path, tries: int, **options: Any) -> None:
    """Change one random byte of all bytes of an output, as often as told; each time it is found."""
    out = merged(root, **options)
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    contents = {path: path.read_bytes() for path in files}
    draw = random.Random(0)
    for path in draw.choices(files, [len(contents[p]) for p in files], k=tries):
        flipped = bytearray(contents[path])
        place, bits = draw.randrange(len(flipped)), draw.randrange(1, 256)
        flipped[place] ^= bits
        path.write_bytes(flipped)
        try:
            found = streammerge.verify(out).findings
        except StreammergeError as error:
            assert path.name in str(error)
            found = [streammerge.Finding(path.name, "cannot be read")]
        assert any(finding.where == path.name for finding in found) or (
            path.name == "streammerge.json" and found
        ), f"byte {place} of {path.name} ^ {bits:#x} was not found"
        path.write_bytes(contents[path])
    assert streammerge.verify(out).ok


@pytest.mark.parametrize("shard_size", ["1GB", "1KB"], ids=["single", "sharded"])
def test_any_flipped_byte_is_found(tmp_path: Path, shard_size: str) -> None:
    flip_every_kind_of_byte(tmp_path, 150, max_shard_size=shard_size)


@pytest.mark.slow
@pytest.mark.parametrize("shard_size", ["1GB", "1KB"], ids=["single", "sharded"])
def test_any_of_a_thousand_flipped_bytes_is_found(tmp_path: Path, shard_size: str) -> None:
    flip_every_kind_of_byte(tmp_path, 1000, max_shard_size=shard_size)


def test_every_byte_of_the_manifest_counts(single: Out) -> None:
    path = single / "streammerge.json"
    content = path.read_bytes()
    for changed in (content + b"\n", content[:-1], b" " + content, content.replace(b": ", b":", 1)):
        path.write_bytes(changed)
        assert "changed" in findings(single)["streammerge.json"]


DAMAGES: dict[str, tuple[Callable[[Out], Any], str, str]] = {
    "shard missing": (lambda o: (o / "model-00002-of-00005.safetensors").unlink(), "00002", "miss"),
    "shard cut": (lambda o: cut(o / "model-00002-of-00005.safetensors"), "00002", "truncated"),
    "shard grown": (lambda o: grow(o / "model-00002-of-00005.safetensors"), "00002", "bytes"),
    "shards swapped": (
        lambda o: swap(o, "model-00002-of-00005.safetensors", "model-00003-of-00005.safetensors"),
        "00003",
        "bytes|sha256",
    ),
    "index missing": (lambda o: (o / INDEX).unlink(), INDEX, "miss"),
    "index broken": (lambda o: (o / INDEX).write_text("{"), INDEX, "JSON"),
    "index lies": (lambda o: edit(o / INDEX, "00002-of", "00003-of"), INDEX, "disagrees"),
    "index names others": (lambda o: edit(o / INDEX, "00002-of", "00009-of"), INDEX, "foreign"),
    "index counts wrongly": (lambda o: edit(o / INDEX, '"total_size": ', '"total_size": 1'), INDEX, "metadata"),
    "config changed": (lambda o: grow(o / "config.json"), "config.json", "sha256"),
    "side file missing": (lambda o: (o / "vocab.txt").unlink(), "vocab.txt", "miss"),
    "card changed": (lambda o: grow(o / "README.md"), "README.md", "sha256"),
    "stray shard": (lambda o: (o / "model.safetensors").touch(), "model.safetensors", "no part"),
    "stray pickle": (lambda o: (o / "pytorch_model.bin").touch(), "pytorch_model.bin", "no part"),
    "stray index": (lambda o: (o / "x.bin.index.json").touch(), "x.bin.index.json", "no part"),
    "staging left": (lambda o: (o / ".streammerge-partial").mkdir(), "partial", "left"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def swap(out: Out, one: str, other: str) -> None:
    (out / one).rename(out / "x")
    (out / other).rename(out / one)
    (out / "x").rename(out / other)


@pytest.mark.parametrize(("damage", "where", "what"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_named(
    sharded: Out, damage: Callable[[Out], Any], where: str, what: str
) -> None:
    assert len(list(sharded.glob("*.safetensors"))) == 5
    damage(sharded)
    found = findings(sharded)
    import re

    assert any(where in w and re.search(what, said) for w, said in found.items()), found
