"""Files that are or claim to be huge, deep or strangely named: refused, or harmless."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.checkpoint import open_checkpoint
from streammerge.errors import CheckpointError, StreammergeError
from streammerge.formats.limits import MOST, SMALL, refuse_length
from streammerge.formats.safetensors import encode_header
from streammerge.tensors import TensorInfo
from tests.fuzzing.bounds import BYTES, SECONDS, survives
from tests.fuzzing.targets import SHARDS, TARGETS, safetensors_file
from tests.support.attacks import Trap
from tests.support.checkpoints import INDEX, read_checkpoint, write_checkpoint
from tests.support.merging import assert_exact, write_all
from tests.support.raw import entry, write_raw

HEADERS = [MOST, MOST - 1, 25_000_000, SMALL + 1]
EMPTY = '"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def claim(path: Path, length: int, size: int) -> Path:
    """A sparse file that begins like one with a header of that length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(size)
    return path


def refused_cheaply(path: Path, *words: str) -> None:
    """Refused with these words, in a second and in little memory."""
    tracemalloc.start()
    begin = time.thread_time()
    with pytest.raises(StreammergeError) as refusal:
        open_checkpoint(path)
    seconds, (_, peak) = time.thread_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(word in str(refusal.value) for word in words), str(refusal.value)
    assert seconds < SECONDS
    assert peak < BYTES


@pytest.mark.parametrize("length", HEADERS)
@pytest.mark.parametrize("data", [0, 2_000])
def test_a_header_far_longer_than_its_data(tmp_path: Path, length: int, data: int) -> None:
    """The format allows 100 MB; but a file that is all header is no model."""
    path = claim(tmp_path / "model.safetensors", length, 8 + length + data)
    refused_cheaply(path, "header", f"{length:,}", f"far longer than the {data:,}")


@pytest.mark.parametrize("length", [MOST + 1, 10 * MOST])
def test_a_header_over_the_limit_whatever_it_describes(tmp_path: Path, length: int) -> None:
    path = claim(tmp_path / "model.safetensors", length, 2 * length + 8)
    refused_cheaply(path, "header", f"limit of {MOST:,}")


@pytest.mark.parametrize(
    ("tensors", "each", "what"),
    [
        (200_000, 4096, "the experts of a 1 GB model"),
        (500_000, 4_000_000, "a model of 2 TB"),
        (700_000, 4, "scalars in float32"),
    ],
)
def test_no_model_comes_near_the_limits(tensors: int, each: int, what: str) -> None:
    """By arithmetic: 140 bytes of header for each tensor, and 130 of an index."""
    refuse_length(what, 140 * tensors, each * tensors)
    refuse_length(what, 130 * tensors, each * tensors)


def test_many_tensors_of_one_element_are_a_model(tmp_path: Path) -> None:
    tensors = [
        TensorInfo(f"model.layers.{i}.mlp.experts.{j}.scale", "BF16", (1,))
        for i in range(100)
        for j in range(100)
    ]
    raw = encode_header(tensors)
    assert len(raw) > 3 * SMALL
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw + bytes(2 * len(tensors)))
    assert len(open_checkpoint(path).tensors) == len(tensors)


def test_no_header_is_written_that_would_not_be_read() -> None:
    tensors = [TensorInfo(f"{i:0100}", "BF16", (0,)) for i in range(2000)]
    with pytest.raises(CheckpointError, match="far longer"):
        encode_header(tensors)


def filled(items: str, length: int) -> str:
    """A JSON object of that length, of items with a number in them."""
    parts: list[str] = []
    nbytes = 2
    while nbytes < length:
        parts.append(items.replace("%x", f"{len(parts):x}"))
        nbytes += len(parts[-1]) + 1
    return "{" + ",".join(parts[:-1]) + "}"


ITEMS = {
    "lists": '"%x":[[[[]]],[[[]]],[[[]]]]',
    "objects": '"%x":{"":{"":{}}}',
    "pairs": '"%x":0',
    "dtypes": '"%x":{"dtype":"float32","vocab_size":2}',
    "tensors": EMPTY,
    "shards": f'"%x":"{SHARDS[0]}"',
    "text": '"%x":"\\ud83d\\ude00"',
}
FAST = [("header", "objects"), ("index", "lists"), ("config", "objects"), ("adapter", "pairs")]


@pytest.mark.parametrize(("name", "items"), FAST)
def test_the_longest_file_that_is_always_read(name: str, items: str) -> None:
    longest(name, items, "another")


@pytest.mark.slow
@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("name", ["header", "index", "config", "adapter", "manifest"])
def test_the_longest_files_that_are_always_read(name: str, items: str) -> None:
    """With the items in the place of each object that the good file has, and in another."""
    content = TARGETS[name].content
    assert isinstance(content, dict)
    objects = [key for key, value in content.items() if isinstance(value, dict)]
    for key in ["another", *objects]:
        longest(name, items, key)


def longest(name: str, items: str, key: str) -> None:
    """A good file in which the value of a key is an object of many items, as long as may be."""
    target = TARGETS[name]
    assert isinstance(target.content, dict)
    text = json.dumps({**target.content, key: "@@"})
    text = text.replace('"@@"', filled(ITEMS[items], SMALL - len(text)))
    if name == "header":  # the items at the top, where they would be tensors
        survives(target.read, safetensors_file(filled(ITEMS[items], SMALL).encode(), b""))
    else:
        survives(target.read, text.encode())


@pytest.mark.parametrize("shape", [[10**9], [10**5, 10**4], [2**31, 2**31], [2**62]], ids=str)
@pytest.mark.parametrize("promised", [True, False])
def test_a_shape_of_a_billion_elements_without_data(
    tmp_path: Path, shape: list[int], promised: bool
) -> None:
    numel = 1
    for size in shape:
        numel *= size
    end = min(4 * numel, 2**63 - 1) if promised else 0
    header = {"w": entry("F32", shape, 0, end)}
    refused_cheaply(write_raw(tmp_path / "model.safetensors", header, b""), "w")


@pytest.mark.parametrize("name", ["config.json", INDEX, "modules.json", "README.md"])
def test_a_huge_file_beside_the_weights(trap: Trap, name: str) -> None:
    write_checkpoint(trap.bad, {"a.weight": torch.ones(2, 4), "b.weight": torch.ones(4)})
    with (trap.bad / name).open("wb") as file:
        file.write(b"{")
        file.truncate(100_000_000)
    if name in ("config.json", INDEX):
        refused_cheaply(trap.bad, name, "100,000,000")
    else:
        assert len(open_checkpoint(trap.bad).tensors) == 2
        assert open_checkpoint(trap.bad).card() == ""


@pytest.mark.parametrize("depth", [101, 500, 900, 990, 5_000, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_deep_json(trap: Trap, name: str, depth: int, brackets: str) -> None:
    write_checkpoint(trap.bad, {"a.weight": torch.ones(2, 4), "b.weight": torch.ones(4)}, shards=2)
    opening = '{"a":' if brackets == "{}" else "["
    deep = opening * depth + "1" + brackets[1] * depth
    content = json.loads((trap.bad / INDEX).read_text()) if name == INDEX else {"x": 1}
    text = json.dumps(content)[:-1] + f', "deep": {deep}}}'
    (trap.bad / name).write_text(text)
    trap.refused(name.replace(".", r"\."))


def test_json_as_deep_as_any_config_is_read(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"text_config": deep, "dtype": "float32"}
    paths = [
        write_checkpoint(tmp_path / name, {"w": torch.ones(4)}, config=deep) for name in ("a", "b")
    ]
    streammerge.average(paths, tmp_path / "out", dtype="float16")
    assert (tmp_path / "out" / "config.json").read_text().count("float16") == 60


STRANGE = (
    *("a/b.weight", "../../etc/passwd", "/abs", "..", ".", "", " ", "a\nb", "a\0b", "a\tb", "a\\b"),
    *(
        "\x1b[31mred",
        "\u202egnp.exe",
        "é",
        "e\u0301",
        "😀",
        "a" * 10_000,
        "__metadata",
        "x.y.z",
        "%s",
    ),
    *("{0}", "$HOME", "`id`", "[bold]x[/]", "*", "?", "[a-z]", "#", "'", '"', "model.safetensors"),
)


def test_tensors_of_any_name_are_merged_and_nothing_is_written_by_it(tmp_path: Path) -> None:
    """A tensor's name is a key and nothing else: no path, no glob, no markup, no format."""
    models = [
        {name: torch.full((3,), float(i + n)) for n, name in enumerate(STRANGE)} for i in (1, 2)
    ]
    paths = write_all(tmp_path, models)
    before = {path for path in tmp_path.rglob("*") if path.name != "out"}
    result = streammerge.average(paths, tmp_path / "out", max_shard_size="100B")
    assert len(result.shards) > 3
    merged = read_checkpoint(tmp_path / "out")
    assert merged.keys() == set(STRANGE)
    for name in STRANGE:
        assert_exact(merged[name], [model[name] for model in models])
    written = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    assert written == before | {tmp_path / "out"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    wanted = {shard.file for shard in result.shards} | {INDEX, "README.md", "streammerge.json"}
    assert names == wanted
    assert streammerge.verify(tmp_path / "out", recompute="all").ok


@pytest.mark.parametrize("name", STRANGE[:20])
def test_messages_about_tensors_of_any_name_are_printable(trap: Trap, name: str) -> None:
    header = {"a.weight": entry("F32", [2, 4], 0, 32), name: entry("F32", [5], 32, 48)}
    write_raw(trap.bad / "model.safetensors", header, bytes(48))
    message = trap.refused(r"model\.safetensors")
    assert all(character.isprintable() or character == "\n" for character in message)
    assert len(message) < 1000
