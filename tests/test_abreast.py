"""Shards that grow side by side: the same files, each in its order, and never more than allowed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import streammerge
from streammerge import api, budget
from streammerge.errors import BudgetError
from streammerge.outputs.shardfile import DirectoryShard
from streammerge.storage.mapped import MappedReader
from streammerge.windows import Window, cut_windows
from tests.support.checkpoints import Tensors, like, write_checkpoint
from tests.support.merging import sizes_in
from tests.support.outputs import read_json
from tests.support.preparing import prepare_average

SIZES = (400_000, 90_000, 5, 250_000, 130_000, 70_001, 300_000, 60_000, 1, 120_000)
SMALL = {"max_shard_size": "600kB"}
Processors = Callable[[int], None]


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Processors:
    """Sets how many processors there seem to be."""
    return lambda count: monkeypatch.setattr(budget, "_cpus", lambda: count)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models whose tensors come to six shards of very different sizes."""
    root = tmp_path_factory.mktemp("abreast")
    generator = torch.Generator().manual_seed(0)
    first: Tensors = {
        f"w{i}": torch.randn(numel, generator=generator).bfloat16() for i, numel in enumerate(SIZES)
    }
    models = [first, like(first, seed=2)]
    return [write_checkpoint(root / str(i), model) for i, model in enumerate(models)]


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many shards were open after each that was created."""
    open_now: set[DirectoryShard] = set()
    counts: list[int] = []
    create, finish = DirectoryShard.__init__, DirectoryShard.finish

    def created(shard: DirectoryShard, *arguments: object, **options: object) -> None:
        create(shard, *arguments, **options)  # type: ignore[arg-type]
        open_now.add(shard)
        counts.append(len(open_now))

    def finished(shard: DirectoryShard) -> None:
        finish(shard)
        open_now.discard(shard)

    monkeypatch.setattr(DirectoryShard, "__init__", created)
    monkeypatch.setattr(DirectoryShard, "finish", finished)
    return counts


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if "model" in path.name}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_same_files_and_digests_however_many_grow_at_once(
    tmp_path: Path, folders: list[Path], processors: Processors, growing: list[int], count: int
) -> None:
    processors(1)
    streammerge.average(folders, tmp_path / "one", **SMALL)
    assert max(growing) == 1
    growing.clear()
    processors(count)
    streammerge.average(folders, tmp_path / "many", **SMALL)
    assert max(growing) > 1
    found = files_of(tmp_path / "many")
    assert found == files_of(tmp_path / "one")
    recorded = read_json(tmp_path / "many" / "streammerge.json")["shards"]
    assert len(recorded) == 6
    for shard in recorded:
        assert shard["sha256"] == hashlib.sha256(found[shard["file"]]).hexdigest()


def test_what_has_to_be_measured_keeps_the_order_of_one_shard(
    tmp_path: Path, folders: list[Path], processors: Processors
) -> None:
    processors(4)
    recipe = tmp_path / "recipe.yml"
    own = {
        "slerp": "{t: 0.3}",
        "ties": "{weight: 1, density: 0.5}",
        "task_arithmetic": "{weight: 1}",
    }
    for method, expected in (("slerp", 1), ("ties", 1), ("task_arithmetic", 4)):
        recipe.write_text(
            f"merge_method: {method}\nbase_model: {folders[0]}\nparameters: {own[method]}\n"
            f"models:\n- model: {folders[1]}\n"
        )
        prepared = api.prepare(streammerge.load_recipe(recipe), tmp_path / "out", **SMALL)
        assert prepared.layout.abreast == expected, method


def test_a_small_budget_is_enough_for_one_shard_at_a_time(
    tmp_path: Path, folders: list[Path], processors: Processors
) -> None:
    processors(4)
    with pytest.raises(BudgetError) as refused:
        prepare_average(folders, tmp_path / "out", memory="1MiB", **SMALL)
    (least,) = sizes_in(str(refused.value.remedy))
    layouts = [
        prepare_average(folders, tmp_path / "out", memory=size, **SMALL).layout
        for size in (least, 2 * least)
    ]
    assert [layout.abreast for layout in layouts] == [2, 4]
    assert all(layout.peak <= layout.memory for layout in layouts)
    streammerge.average(folders, tmp_path / "out", memory=least, **SMALL)


@pytest.mark.parametrize("abreast", [1, 2, 3, 50])
@pytest.mark.parametrize("size", [4096, 65_536, 2**25])
def test_windows_of_a_shard_come_in_order_in_one_row(
    tmp_path: Path, folders: list[Path], abreast: int, size: int
) -> None:
    prepared = prepare_average(folders, tmp_path / "out", **SMALL)
    plan, checkpoints = prepared.plan, prepared.checkpoints
    kept = {plan.shards[1].file}
    windows = list(cut_windows(plan, checkpoints, size, kept, abreast))
    in_one_row = {
        (window.shard, window.start): window
        for window in cut_windows(plan, checkpoints, size, kept)
    }
    assert len(windows) == len(in_one_row)
    begun: dict[int, Window] = {}
    for window in windows:
        before = begun.get(window.shard)
        assert window.start == (before.start + before.length if before else 0)
        assert before is None or before.row == window.row
        assert window.pieces == in_one_row[window.shard, window.start].pieces
        begun[window.shard] = window
        unfinished = [
            w for w in begun.values() if w.start + w.length < plan.shards[w.shard].file_size
        ]
        assert len(unfinished) <= abreast
        assert len({w.row for w in unfinished}) == len(unfinished)


def test_a_mapping_read_in_two_places_releases_what_is_behind_in_both(tmp_path: Path) -> None:
    path, length = tmp_path / "file", 2**16
    content = torch.randint(0, 256, (64 * length,), dtype=torch.uint8).numpy().tobytes()
    path.write_bytes(content)
    reader = MappedReader(str(path), os.open(path, os.O_RDONLY), len(content))
    released: list[tuple[int, int]] = []

    class Noting:
        """The mapping, which notes what is released."""

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def madvise(self, option: int, start: int, nbytes: int) -> None:
            if option == 4:  # MADV_DONTNEED
                released.append((start, nbytes))

    reader._map = Noting(reader._map)  # type: ignore[assignment]
    places = [row * 32 * length + step * length for step in range(32) for row in (0, 1)]
    for place in places:
        assert bytes(reader.fetch(place, length, memoryview(b""))) == content[place:][:length]
        in_use = set(places[max(0, places.index(place) - 7) : places.index(place) + 1])
        assert not in_use & {start for start, _ in released}
    assert released == [(place, length) for place in places[:-8]]
