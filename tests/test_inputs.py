"""What counts as a checkpoint, and which of its files are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import streammerge
from tests.support.checkpoints import Tensors, like, random_tensors, write_checkpoint
from tests.support.merging import assert_exact, merge_paths, refusal
from tests.support.raw import entry, write_raw


@pytest.fixture
def pair() -> tuple[Tensors, Tensors]:
    first = random_tensors(1)
    return first, like(first, seed=2)


def test_stray_files_beside_an_index_are_not_read(
    tmp_path: Path, pair: tuple[Tensors, Tensors]
) -> None:
    a = write_checkpoint(tmp_path / "a", pair[0], shards=3)
    b = write_checkpoint(tmp_path / "b", pair[1], shards=2)
    stray = {name: torch.full_like(t, 7) for name, t in pair[0].items()} | {"z": torch.ones(3)}
    write_checkpoint(a, stray, file_name="model-00001-of-00009.safetensors")
    merged = merge_paths([a, b], tmp_path / "out")
    assert merged.keys() == pair[0].keys()
    for name in merged:
        assert_exact(merged[name], [pair[0][name], pair[1][name]])


def test_a_path_to_one_file_among_several_reads_that_file(
    tmp_path: Path, pair: tuple[Tensors, Tensors]
) -> None:
    folder = write_checkpoint(tmp_path / "a", pair[0], file_name="step1.safetensors")
    write_checkpoint(folder, pair[1], file_name="step2.safetensors")
    files = [folder / "step1.safetensors", folder / "step2.safetensors"]
    merged = merge_paths(files, tmp_path / "out")
    for name in merged:
        assert_exact(merged[name], [pair[0][name], pair[1][name]])


def test_a_folder_with_two_files_and_no_index_is_refused_by_name(
    tmp_path: Path, pair: tuple[Tensors, Tensors]
) -> None:
    folder = write_checkpoint(tmp_path / "a", pair[0], file_name="one.safetensors")
    write_checkpoint(folder, pair[1], file_name="two.safetensors")
    good = write_checkpoint(tmp_path / "b", pair[1])
    refusal(
        lambda: streammerge.average([str(folder), str(good)], str(tmp_path / "out")),
        "one.safetensors",
        "two.safetensors",
    )


def test_a_shard_of_a_sharded_model_is_no_model(
    tmp_path: Path, pair: tuple[Tensors, Tensors]
) -> None:
    a = write_checkpoint(tmp_path / "a", pair[0], shards=3)
    b = write_checkpoint(tmp_path / "b", pair[1])
    names = [str(a / "model-00001-of-00003.safetensors"), str(b)]
    refusal(lambda: streammerge.average(names, str(tmp_path / "out")), "not in|missing|lack")


def test_a_header_padded_with_spaces_and_without_metadata_is_read(tmp_path: Path) -> None:
    data = torch.tensor([1.0, 3.0]).numpy().tobytes()
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}' + b" " * 97
    a = write_raw(tmp_path / "a" / "model.safetensors", header, data)
    b = write_raw(tmp_path / "b" / "model.safetensors", {"w": entry("F32", [2], 0, 8)}, data)
    assert merge_paths([a, b], tmp_path / "out")["w"].tolist() == [1.0, 3.0]


def test_tensors_that_start_at_odd_bytes_are_read(tmp_path: Path) -> None:
    flags, numbers = b"\x01", torch.tensor([1.5, -2.5]).numpy().tobytes()
    header = {"a": entry("BOOL", [1], 0, 1), "w": entry("F32", [2], 1, 9)}
    paths = [
        write_raw(tmp_path / name / "model.safetensors", header, flags + numbers) for name in "ab"
    ]
    for io in ("direct", "mmap", "buffered"):
        merged = merge_paths(paths, tmp_path / io, io=io)
        assert merged["w"].tolist() == [1.5, -2.5]
        assert merged["a"].tolist() == [True]


def test_pathlike_models_and_out_are_taken(tmp_path: Path, pair: tuple[Tensors, Tensors]) -> None:
    a = write_checkpoint(tmp_path / "a", pair[0])
    b = write_checkpoint(tmp_path / "b", pair[1])
    result = streammerge.average([a, b], tmp_path / "out")
    assert result.out == tmp_path / "out"
    assert result.parameters == sum(t.numel() for t in pair[0].values())
    assert result.seconds > 0


def test_the_same_checkpoint_twice_is_itself(tmp_path: Path, pair: tuple[Tensors, Tensors]) -> None:
    a = write_checkpoint(tmp_path / "a", pair[0])
    merged = merge_paths([a, a], tmp_path / "out", weights=[0.9, 0.1])
    for name in merged:
        assert torch.equal(merged[name], pair[0][name])
