"""One plan, one result: the same bytes however the inputs lie, and those of save_file."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import streammerge
from tests.support.checkpoints import INDEX, Tensors, like, random_tensors, write_checkpoint
from tests.support.merging import merge_paths, refusal, sizes_in, snapshot, write_all
from tests.support.outputs import read_json
from tests.support.reference import exact_mean

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool)
LAYOUTS: dict[str, dict[str, Any]] = {
    "one file": {},
    "odd-named file": {"file_name": "final weights v2.safetensors"},
    "two shards": {"shards": 2},
    "seven shards": {"shards": 7},
    "one file, shuffled": {"shuffle": 1},
    "five shards, shuffled": {"shards": 5, "shuffle": 2},
}
Bytes = dict[str, bytes]


def three_models() -> list[Tensors]:
    first = random_tensors(1, DTYPES)
    return [first, like(first, seed=2), like(first, seed=3)]


def expected_mean(models: list[Tensors]) -> Tensors:
    return {
        name: exact_mean([m[name] for m in models], None, tensor.dtype)
        if tensor.dtype.is_floating_point
        else tensor
        for name, tensor in models[0].items()
    }


def weights_of(out: Path) -> Bytes:
    """The bytes of every file that a loader reads tensors or their places from."""
    return {p.name: p.read_bytes() for p in out.iterdir() if "model" in p.name}


def save_file_bytes(tensors: Tensors, scratch: Path) -> bytes:
    save_file(tensors, scratch, metadata={"format": "pt"})
    return scratch.read_bytes()


@pytest.fixture(scope="module")
def models() -> list[Tensors]:
    return three_models()


@pytest.fixture(scope="module")
def single(models: list[Tensors], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What save_file writes for the exact mean: found by no code of ours."""
    return save_file_bytes(expected_mean(models), tmp_path_factory.mktemp("x") / "x.safetensors")


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_output_is_save_files_for_every_layout_of_the_inputs(
    tmp_path: Path, models: list[Tensors], single: bytes, layout: dict[str, Any]
) -> None:
    merge_paths(write_all(tmp_path, models, **layout), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == single


def test_inputs_of_different_layouts_mix(
    tmp_path: Path, models: list[Tensors], single: bytes
) -> None:
    paths = [
        write_checkpoint(tmp_path / f"m{i}", model, **layout)
        for i, (model, layout) in enumerate(
            zip(models, [{}, {"shards": 7}, {"shuffle": 9}], strict=True)
        )
    ]
    paths[2] = paths[2] / "model.safetensors"
    merge_paths(paths, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == single


def test_symlinked_shards_as_in_the_hub_cache_are_read(
    tmp_path: Path, models: list[Tensors], single: bytes
) -> None:
    paths = write_all(tmp_path, models, shards=3)
    for path in paths:
        blobs = tmp_path / f"blobs-{path.name}"
        blobs.mkdir()
        for file in sorted(path.iterdir()):
            file.rename(blobs / f"{file.name}.blob")
            file.symlink_to(blobs / f"{file.name}.blob")
    merge_paths(paths, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == single


@pytest.mark.parametrize("io", ["auto", "direct", "mmap", "buffered"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_io_mode_gives_the_same_bytes(
    tmp_path: Path, models: list[Tensors], single: bytes, io: str, shards: int
) -> None:
    paths = write_all(tmp_path, models, shards=shards, shuffle=shards)
    merge_paths(paths, tmp_path / "out", io=io)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == single


@pytest.mark.parametrize("method", ["average", "slerp", "iso_c"])
def test_how_every_file_was_read_is_said_once(tmp_path: Path, method: str) -> None:
    """Whether a method sees blocks once, blocks twice, or whole tensors."""
    models = [{name: torch.randn(8, 8) for name in "abc"} for _ in range(2)]
    first, second = write_all(tmp_path, models, shards=3)
    base = {} if method == "average" else {"base_model": str(first)}
    parameters = {"t": 0.5} if method == "slerp" else {}
    named = [{"model": str(path)} for path in ((first, second) if not base else (second,))]
    recipe = {"merge_method": method, "models": named, "parameters": parameters, **base}
    text = tmp_path / "recipe.yml"
    text.write_text(json.dumps(recipe))
    done = streammerge.merge(text, tmp_path / "out", io="buffered")
    assert done.read_modes == {"buffered": 6}


def test_every_memory_budget_gives_the_same_bytes(tmp_path: Path, models: list[Tensors]) -> None:
    long = {"long.weight": torch.arange(3_000_001, dtype=torch.float32).bfloat16()}
    inputs = [m | like(long, seed=i) for i, m in enumerate(models)]
    paths = write_all(tmp_path, inputs, shards=2)
    expected = save_file_bytes(expected_mean(inputs), tmp_path / "x.safetensors")
    names = [str(p) for p in paths]
    least = max(
        sizes_in(refusal(lambda: streammerge.average(names, tmp_path / "no", memory="1MiB")))
    )
    for i, memory in enumerate([str(least), str(least + 2**23), str(2 * least), "6GB"]):
        merge_paths(paths, tmp_path / f"out{i}", memory=memory)
        same = (tmp_path / f"out{i}" / "model.safetensors").read_bytes() == expected
        assert same, f"other bytes with memory={memory}"


def test_names_in_any_script_are_written_as_save_file_does(tmp_path: Path) -> None:
    names = [
        "é.weight",
        "層.weight",
        "\U0001f600",
        'quo"te',
        "back\\slash",
        "tab\t",
        "\x7f",
        "\x01",
        "",
    ]
    model = {name: torch.full((3,), float(i)) for i, name in enumerate(names)}
    merge_paths(write_all(tmp_path, [model, model]), tmp_path / "out")
    expected = save_file_bytes(model, tmp_path / "x.safetensors")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected


def test_running_twice_gives_the_same_bytes(tmp_path: Path, models: list[Tensors]) -> None:
    paths = write_all(tmp_path, models)
    for out in ("a", "b"):
        merge_paths(paths, tmp_path / out, weights=[0.5, 0.3, 0.2], max_shard_size="200KB")
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    assert len(weights_of(tmp_path / "a")) > 3


@pytest.mark.parametrize("size", [100_000, 500_000, 1_000_000])
def test_each_shard_is_what_save_file_writes(
    tmp_path: Path, models: list[Tensors], size: int
) -> None:
    out = tmp_path / "out"
    merge_paths(write_all(tmp_path, models, shards=4), out, max_shard_size=f"{size}B")
    weight_map = read_json(out / INDEX)["weight_map"]
    expected = expected_mean(models)
    for shard in sorted(set(weight_map.values())):
        own = {name: expected[name] for name, place in weight_map.items() if place == shard}
        found = (out / shard).read_bytes()
        assert found == save_file_bytes(own, tmp_path / "x.safetensors"), shard
        total = sum(t.nbytes for t in own.values())
        assert total <= size or len(own) == 1, f"{shard} holds {total} bytes"


@pytest.mark.parametrize("size", ["100KB", "300KiB", "1MB"])
def test_shards_are_named_and_packed_as_the_hub_does(
    tmp_path: Path, models: list[Tensors], size: str
) -> None:
    out = tmp_path / "out"
    names = [str(p) for p in write_all(tmp_path, models, shards=3, shuffle=4)]
    result = streammerge.average(names, str(out), max_shard_size=size)
    in_order = dict(sorted(models[0].items()))
    hub = split_torch_state_dict_into_shards(in_order, max_shard_size=sizes_in(size)[0])
    assert len(hub.filename_to_tensors) > 1
    written = {p.name: set(load_file(p)) for p in out.glob("*.safetensors")}
    assert written == {file: set(own) for file, own in hub.filename_to_tensors.items()}
    assert [s.file for s in result.shards] == sorted(written)
    assert read_json(out / INDEX)["weight_map"] == hub.tensor_to_filename


def test_the_index_says_what_the_shards_hold(tmp_path: Path, models: list[Tensors]) -> None:
    out = tmp_path / "out"
    merge_paths(write_all(tmp_path, models), out, max_shard_size="200KB")
    index = read_json(out / INDEX)
    assert set(index) == {"metadata", "weight_map"}
    assert list(index["weight_map"]) == sorted(models[0])
    for shard in set(index["weight_map"].values()):
        with safe_open(out / shard, "pt") as file:
            own = {name for name, place in index["weight_map"].items() if place == shard}
            assert set(file.keys()) == own
            assert file.metadata() == {"format": "pt"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in models[0].values())
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in models[0].values())
    assert (out / INDEX).read_text().startswith('{\n  "metadata"'), "two spaces of indent"


def test_one_shard_has_no_index(tmp_path: Path, models: list[Tensors]) -> None:
    merge_paths(write_all(tmp_path, models, shards=3), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*index*"))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_files_have_the_modes_that_the_umask_gives(
    tmp_path: Path, models: list[Tensors], umask: int
) -> None:
    paths = write_all(tmp_path, models, config={"model_type": "toy"})
    before = os.umask(umask)
    try:
        merge_paths(paths, tmp_path / "out", max_shard_size="300KB")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
    for file in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask, file.name


def test_inputs_are_not_changed(tmp_path: Path, models: list[Tensors]) -> None:
    fp32 = [{n: t.float() if t.is_floating_point() else t for n, t in m.items()} for m in models]
    paths = write_all(tmp_path, fp32, shards=2)
    for i, io in enumerate(["mmap", "buffered", "direct"]):
        before = snapshot(*paths)
        merge_paths(paths, tmp_path / f"out{i}", io=io)
        assert snapshot(*paths) == before, f"io={io} changed an input"


def test_the_plan_has_a_fingerprint_that_follows_the_wish(
    tmp_path: Path, models: list[Tensors]
) -> None:
    paths = [str(p) for p in write_all(tmp_path, models)]
    plans = [
        streammerge.plan_average(paths, str(tmp_path / "out"), weights=weights)
        for weights in (None, [1, 1, 1], [1, 2, 1])
    ]
    prints = [p.fingerprint() for p in plans]
    assert prints[0] == prints[1] != prints[2]
    assert all(re.fullmatch(r"[0-9a-f]{16,64}", p) for p in prints)
