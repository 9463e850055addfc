"""An output's files: named and packed as on the Hub, and without being asked, in equal pairs."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

import streammerge
from streammerge.plan import OutputShard, OutputTensor
from streammerge.sharding import split
from tests.support.raw import entry, write_raw

GB = 10**9


def tensors(sizes: list[int]) -> list[OutputTensor]:
    """Tensors of so many bytes, named in this order."""
    return [
        OutputTensor(name=f"layers.{i}.weight", dtype="U8", shape=(size,), step=0)
        for i, size in enumerate(sizes)
    ]


def like_a_model(total: int, layers: int, seed: int) -> list[int]:
    """Sizes as language models have them: an embedding and a head, layers alike, small ones."""
    chance = random.Random(seed)
    ends = min(total // chance.randint(10, 30), 2 * GB)
    share = (total - 2 * ends) // layers
    parts = [share // 2, share // 4, share - share // 2 - share // 4 - 8192, 8192]
    chance.shuffle(parts)
    return [ends, *parts * layers, ends]


def nbytes(shards: tuple[OutputShard, ...]) -> list[int]:
    return [sum(tensor.info.nbytes for tensor in shard.tensors) for shard in shards]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("total", [4, 6, 7.5, 9.9, 15, 29, 145])
def test_what_exceeds_one_file_lies_in_pairs_of_equal_shards(total: float, seed: int) -> None:
    sizes = like_a_model(int(total * GB), layers=80, seed=seed)
    shards = split(tensors(sizes), None)
    loads = nbytes(shards)
    assert sum(loads) == sum(sizes)
    assert max(loads) <= 5 * GB
    # Large tensors may not allow pairs; among many shards, one without a partner does not matter.
    assert len(shards) % 2 == 0 or len(shards) > 20
    assert len(shards) <= len(split(tensors(sizes), 5 * GB)) + 1, "more files than there need be"
    # No file is larger than an equal share but for a tensor: the last is what remains.
    assert max(loads) <= sum(sizes) / len(shards) + max(sizes)
    assert all(abs(a - b) <= 2 * max(sizes) for a, b in pairwise(loads[:-1]))


@pytest.mark.parametrize("total", [1, 10**6, 3 * GB])
def test_small_outputs_are_one_file(total: int) -> None:
    assert [s.file for s in split(tensors([total - total // 2, total // 2]), None)] == [
        "model.safetensors"
    ]


def test_tensors_larger_than_a_shard_have_one_each() -> None:
    sizes = [6 * GB, GB, 7 * GB, GB]
    loads = nbytes(split(tensors(sizes), None))
    assert sorted(loads)[-2:] == [6 * GB, 7 * GB]
    assert sum(loads) == sum(sizes)


def test_the_order_of_the_tensors_does_not_matter() -> None:
    own = tensors(like_a_model(9 * GB, layers=40, seed=1))
    shuffled = random.Random(2).sample(own, len(own))
    assert split(own, None) == split(shuffled, None)


def sparse(folder: Path) -> str:
    """A checkpoint of 4 GB in 20 tensors, all zeros that take no room."""
    step = 200_000_000
    names = enumerate(f"layers.{i}.weight" for i in range(20))
    header = {n: entry("BF16", [step // 2], i * step, (i + 1) * step) for i, n in names}
    path = write_raw(folder / "model.safetensors", header, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 20 * step)
    return str(folder)


@pytest.mark.parametrize("asked", [None, "2GB", "5GB"])
def test_a_model_of_4_gb_lies_in_two_files_unless_a_larger_one_is_allowed(
    tmp_path: Path, asked: str | None
) -> None:
    models = [sparse(tmp_path / name) for name in "ab"]
    plan = streammerge.plan_average(models, tmp_path / "out", max_shard_size=asked)
    assert len(plan.shards) == (1 if asked == "5GB" else 2)
    assert len(set(nbytes(plan.shards))) == 1, "equal halves"
