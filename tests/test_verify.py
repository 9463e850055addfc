"""`verify`: good outputs pass, and whatever byte or file is wrong is found and named."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import streammerge
from streammerge.errors import ManifestError, StreammergeError
from tests.support.checkpoints import INDEX
from tests.support.cli import in_process
from tests.support.merging import snapshot
from tests.support.verifying import (
    MANIFEST,
    cut,
    edit,
    findings,
    grow,
    merged,
    merged_in_shards,
    reseal,
    shard_name,
    small,
    swap,
    where_found,
)

Capture = pytest.CaptureFixture[str]
LAYOUTS = pytest.mark.parametrize("make", [merged, merged_in_shards], ids=["single", "sharded"])
Make = Callable[[Path], Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return merged_in_shards(tmp_path)


@LAYOUTS
@pytest.mark.parametrize("recompute", [None, 3, "all"])
def test_a_good_output_passes_and_nothing_is_touched(
    tmp_path: Path, make: Make, recompute: Any
) -> None:
    out = make(tmp_path)
    before = snapshot(tmp_path)
    done = streammerge.verify(out, recompute=recompute)
    assert done.findings == []
    assert done.ok
    assert done.tensors == len(small())
    assert done.recomputed == {None: 0, 3: 3, "all": done.tensors}[recompute]
    assert done.shards == len(list(out.glob("*.safetensors")))
    assert done.shards + done.files == len([p for p in out.rglob("*") if p.is_file()])
    assert snapshot(tmp_path) == before


def flip_bytes(out: Path, tries: int) -> None:
    """Change one byte of all bytes of all files, that many times: each time it is found."""
    files = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    sizes = [len(content) for content in files.values()]
    draw = random.Random(0)
    for path in draw.choices(list(files), sizes, k=tries):
        content = bytearray(files[path])
        place, bits = draw.randrange(len(content)), draw.randrange(1, 256)
        content[place] ^= bits
        path.write_bytes(content)
        where = where_found(out)
        assert path.name in where, f"byte {place} of {path.name} ^ {bits:#x}: {where}"
        path.write_bytes(files[path])
    assert streammerge.verify(out).ok


@LAYOUTS
def test_any_flipped_byte_is_found(tmp_path: Path, make: Make) -> None:
    flip_bytes(make(tmp_path), 120)


@pytest.mark.slow
@LAYOUTS
def test_any_of_a_thousand_flipped_bytes_is_found(tmp_path: Path, make: Make) -> None:
    flip_bytes(make(tmp_path), 1000)


def test_every_flip_in_the_manifest_is_found(tmp_path: Path) -> None:
    out = merged(tmp_path)
    path = out / MANIFEST
    content = path.read_bytes()
    for place in range(0, len(content), 11):
        for bit in (0x01, 0x20, 0x80):
            flipped = bytearray(content)
            flipped[place] ^= bit
            path.write_bytes(flipped)
            assert MANIFEST in where_found(out), f"byte {place} ^ {bit:#x}"


def test_the_very_bytes_of_the_manifest_count(out: Path) -> None:
    path = out / MANIFEST
    content = path.read_bytes()
    for changed in (content + b"\n", content[:-1], b" " + content, content.replace(b": ", b":", 1)):
        path.write_bytes(changed)
        assert "checksum" in findings(out)[MANIFEST]


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "shard missing": (lambda o: (o / shard_name(2)).unlink(), shard_name(2), "missing"),
    "shard cut": (lambda o: cut(o / shard_name(2)), shard_name(2), "truncated"),
    "shard grown": (lambda o: grow(o / shard_name(2)), shard_name(2), "bytes instead of"),
    "shards swapped": (
        lambda o: swap(o / shard_name(2), o / shard_name(3)),
        shard_name(3),
        "bytes instead of|sha256",
    ),
    "index missing": (lambda o: (o / INDEX).unlink(), INDEX, "missing"),
    "index no JSON": (lambda o: (o / INDEX).write_text("{"), INDEX, "JSON"),
    "index lies": (lambda o: edit(o / INDEX, "00002-of", "00003-of"), INDEX, "disagrees"),
    "index names others": (lambda o: edit(o / INDEX, "00002-of", "00009-of"), INDEX, "foreign"),
    "index names more": (
        lambda o: edit(o / INDEX, '"weight_map": {', f'"weight_map": {{"x": "{shard_name(1)}",'),
        INDEX,
        "disagrees.*1 tensor",
    ),
    "index empty": (lambda o: (o / INDEX).write_text('{"weight_map": []}'), INDEX, "disagrees"),
    "index counts": (lambda o: edit(o / INDEX, "total_size", "size"), INDEX, "metadata"),
    "config changed": (lambda o: grow(o / "config.json"), "config.json", "sha256"),
    "side file missing": (lambda o: (o / "vocab.txt").unlink(), "vocab.txt", "missing"),
    "card changed": (lambda o: grow(o / "README.md"), "README.md", "sha256"),
    "stray weights": (lambda o: (o / "model.safetensors").touch(), "model.safetensors", "no part"),
    "stray pickle": (lambda o: (o / "pytorch_model.bin").touch(), "pytorch_model.bin", "no part"),
    "stray index": (lambda o: (o / "x.bin.index.json").touch(), "x.bin.index.json", "no part"),
    "stray in a folder": (
        lambda o: ((o / "sub").mkdir(), (o / "sub" / "x.pt").touch()),
        "sub/x.pt",
        "no part",
    ),
    "staging left": (
        lambda o: (o / ".streammerge-partial").mkdir(),
        ".streammerge-partial",
        "did not end",
    ),
}


@pytest.mark.parametrize(("damage", "where", "what"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_and_named(
    out: Path, damage: Callable[[Path], object], where: str, what: str
) -> None:
    damage(out)
    found = findings(out)
    assert re.search(what, found.get(where, ""), re.S), found


FORGED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "too many tensors": (lambda m: m.update(tensors=99), "99 tensors"),
    "too many parameters": (lambda m: m.update(parameters=99), "99 parameters"),
    "too many bytes": (lambda m: m.update(bytes=99), "99 bytes"),
}


@pytest.mark.parametrize(("change", "what"), FORGED.values(), ids=FORGED)
def test_counts_that_disagree_with_the_shards(
    out: Path, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    reseal(out, change)
    assert what in findings(out)[MANIFEST]


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": lambda o: (o / MANIFEST).unlink(),
    "empty": lambda o: (o / MANIFEST).write_text(""),
    "no JSON": lambda o: (o / MANIFEST).write_text("{"),
    "a list": lambda o: (o / MANIFEST).write_text("[]"),
    "deep": lambda o: (o / MANIFEST).write_text('{"a":' * 20000 + "1" + "}" * 20000),
    "no shards": lambda o: reseal(o, lambda m: m.pop("shards")),
    "zero shards": lambda o: reseal(o, lambda m: m.update(shards=[])),
    "a shard twice": lambda o: reseal(o, lambda m: m["shards"].append(m["shards"][0])),
    "a path outside": lambda o: reseal(o, lambda m: m["files"].update({"../x": ""})),
    "an absolute path": lambda o: reseal(o, lambda m: m["files"].update({"/etc/passwd": ""})),
    "a NUL in a path": lambda o: reseal(o, lambda m: m["files"].update({"a\0b": ""})),
    "a surrogate": lambda o: reseal(o, lambda m: m["files"].update({"\udc80": ""})),
    "models without inputs": lambda o: reseal(o, lambda m: m["inputs"].pop()),
    "too many models": lambda o: reseal(o, lambda m: m["recipe"]["models"].append({"model": "c"})),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_without_a_manifest_nothing_can_be_checked(
    capsys: Capture, out: Path, damage: Callable[[Path], object]
) -> None:
    damage(out)
    with pytest.raises(ManifestError, match=r"streammerge\.json"):
        streammerge.verify(out)
    done = in_process(capsys, "verify", out)
    assert (done.code, done.out) == (1, "")
    assert MANIFEST in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("place", ["nowhere", "a", "out/config.json"])
def test_what_is_no_output_is_refused(tmp_path: Path, out: Path, place: str) -> None:
    with pytest.raises(StreammergeError):
        streammerge.verify(tmp_path / place)


def test_the_command_says_that_all_is_well(capsys: Capture, out: Path) -> None:
    done = in_process(capsys, "verify", out, "--recompute", "2", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert str(out) in done.out
    assert "2 tensors computed again" in done.out
    assert len(done.out.splitlines()) == 2


def test_the_command_lists_what_it_found(capsys: Capture, out: Path) -> None:
    grow(out / "config.json")
    (out / shard_name(1)).unlink()
    done = in_process(capsys, "verify", out)
    assert done.code == 1
    assert f"{shard_name(1)} is missing" in done.out
    assert "config.json was changed" in done.out
    assert "2 findings" in done.out


def test_the_command_speaks_json(capsys: Capture, out: Path) -> None:
    good = in_process(capsys, "verify", out, "--json", "--recompute", "all")
    found = json.loads(good.out)
    assert (good.code, found["ok"], found["findings"]) == (0, True, [])
    assert found["recomputed"] == found["tensors"] == len(small())
    grow(out / "config.json")
    bad = in_process(capsys, "verify", out, "--json")
    found = json.loads(bad.out)
    assert (bad.code, found["ok"]) == (1, False)
    assert [finding["where"] for finding in found["findings"]] == ["config.json"]


@pytest.mark.parametrize("count", ["0", "-1", "some", "1.5", ""])
def test_a_count_that_is_none_is_wrong_usage(capsys: Capture, out: Path, count: str) -> None:
    assert in_process(capsys, "verify", out, f"--recompute={count}").code == 2
