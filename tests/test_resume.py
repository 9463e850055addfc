"""Interrupted merges: what is left is never a wrong model, and the same command goes on from it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.errors import OutputError
from streammerge.outputs.directory import STAGING
from streammerge.outputs.journal import Journal
from streammerge.outputs.shardfile import DirectoryShard
from tests.support.checkpoints import add_side_files, write_checkpoint
from tests.support.crashes import killed_at
from tests.support.merging import snapshot, write_all

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
if sys.version_info >= (3, 12):  # the child only merges and dies; it shares no lock with a thread
    pytestmark = [pytestmark, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]

SHAPES = {"a.weight": (300, 70), "b.weight": (301, 70), "c.weight": (302, 70), "d.bias": (9,)}
SHARDS = {"max_shard_size": "45kB", "memory": "300MiB"}


def inputs(folder: Path) -> list[str]:
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


def fail_in_finish(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls: list[int] = []
    original = DirectoryShard.finish

    def finish(self: DirectoryShard) -> None:
        calls.append(1)
        if len(calls) == number:
            raise OutputError("the disk is gone")
        original(self)

    monkeypatch.setattr(DirectoryShard, "finish", finish)


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_finished_shards_are_kept_and_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    models = inputs(tmp_path)
    merge(models, tmp_path / "whole")
    out = tmp_path / "out"
    fail_in_finish(monkeypatch, finished + 1)
    with pytest.raises(OutputError, match="the disk is gone"):
        merge(models, out)
    monkeypatch.undo()
    assert not loadable(out)
    assert out.exists() == (finished > 0)
    result = merge(models, out)
    assert result.kept == finished
    assert files(out) == files(tmp_path / "whole")
    assert streammerge.verify(out).ok


def test_a_kept_shard_that_was_damaged_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = inputs(tmp_path)
    merge(models, tmp_path / "whole")
    fail_in_finish(monkeypatch, 3)
    with pytest.raises(OutputError):
        merge(models, tmp_path / "out")
    monkeypatch.undo()
    kept = sorted((tmp_path / "out" / STAGING).glob("*.partial"))[0]
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    assert merge(models, tmp_path / "out").kept == 1
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda models: ({"weights": [2, 1]}, models), "coefficient"),
        (lambda models: ({"dtype": "float32"}, models), "dtype: auto then, float32 now"),
        (lambda models: ({}, models[::-1]), "m1"),
        (lambda models: (os.utime(Path(models[0]) / "model.safetensors") or {}, models), "version"),
    ],
)
def test_another_merge_is_told_what_differs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[str]], tuple[dict[str, Any], list[str]]],
    said: str,
) -> None:
    models, out = inputs(tmp_path), tmp_path / "out"
    fail_in_finish(monkeypatch, 3)
    with pytest.raises(OutputError):
        merge(models, out)
    monkeypatch.undo()
    options, models = change(models)
    before = snapshot(out)
    with pytest.raises(OutputError, match="differs") as refusal:
        merge(models, out, **options)
    assert said in str(refusal.value)
    assert "--overwrite" in str(refusal.value)
    assert snapshot(out).keys() == before.keys()
    assert merge(models, out, overwrite=True, **options).kept == 0
    assert not (out / STAGING).exists()


def test_a_second_process_on_the_same_output_is_refused(tmp_path: Path) -> None:
    models, out = inputs(tmp_path), tmp_path / "out"
    (out / STAGING).mkdir(parents=True)
    first = Journal(out / STAGING)
    first.lock(str(out))
    with pytest.raises(OutputError, match=rf"process {os.getpid()}\) is writing"):
        merge(models, out)
    first.release()
    assert merge(models, out).kept == 0


LAYOUTS: dict[str, dict[str, Any]] = {
    "one file": {"max_shard_size": "5GB"},
    "shards": {},
    "over an older output": {"overwrite": True},
    "many shards": {"max_shard_size": "1kB"},
    "many shards over an older output": {"max_shard_size": "1kB", "overwrite": True},
}


def crash_and_go_on(tmp_path: Path, layout: str, number: int) -> bool:
    """Kill a merge at one point and check what is left, and what a second run makes of it."""
    models = [str(tmp_path / "m0"), str(tmp_path / "m1")]
    out, whole, old = tmp_path / "out", tmp_path / f"whole {layout}", tmp_path / "old"
    shutil.rmtree(out, ignore_errors=True)
    if "overwrite" in LAYOUTS[layout]:
        shutil.copytree(old, out)
    untouched = snapshot(*map(Path, models))
    killed = killed_at(number, lambda: merge(models, out, **LAYOUTS[layout]))
    if loadable(out):
        weights = {name: data for name, data in files(out).items() if STAGING not in name}
        assert weights in (files(whole), files(old)), f"a wrong model after change {number}"
    if killed:
        merge(models, out, **LAYOUTS[layout])  # the same command, without more --overwrite
    assert files(out) == files(whole), f"another result after a crash at change {number}"
    assert snapshot(*map(Path, models)) == untouched
    return killed


@pytest.fixture
def crash_site(tmp_path: Path) -> Path:
    models = inputs(tmp_path)
    write_checkpoint(tmp_path / "old", {"old.weight": torch.ones(4)}, shards=1)
    add_side_files(tmp_path / "old")
    for layout, options in LAYOUTS.items():
        merge(models, tmp_path / f"whole {layout}", **options)
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_a_sample_of_points(crash_site: Path, layout: str) -> None:
    for number in range(2, 1000, 29):
        if not crash_and_go_on(crash_site, layout, number):
            break
    else:
        pytest.fail("the merge never came to its end")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_every_point(crash_site: Path, layout: str) -> None:
    number = 0
    while crash_and_go_on(crash_site, layout, number):
        number += 1
    print(f"{layout}: killed at {number} points")
    assert number > 50


def killed_before_it_cleans_up(models: list[str], out: Path, **options: Any) -> None:
    """A run that dies when its output is complete: the staging folder is still there."""

    def die_when_published() -> None:
        shutil.rmtree = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        merge(models, out, **options)

    assert killed_at(10**9, die_when_published)
    assert loadable(out)
    assert (out / STAGING).exists()


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "5GB"}, {"overwrite": True}], ids=str)
def test_a_complete_output_with_a_staging_folder_is_cleaned_up(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    models, out = inputs(tmp_path), tmp_path / "out"
    killed_before_it_cleans_up(models, out, **options)
    before = {name: seen for name, seen in snapshot(out).items() if STAGING not in name}
    del before[str(out)]
    assert any(finding.where == STAGING for finding in streammerge.verify(out).findings)
    result = merge(models, out, **options)
    after = snapshot(out)
    assert result.kept == len(result.shards)
    del after[str(out)]
    assert after == before, "a complete output was written again"
    assert streammerge.verify(out).ok
    with pytest.raises(OutputError, match="not empty"):
        merge(models, out)


def test_a_complete_output_of_another_merge_is_not_taken_for_this_one(tmp_path: Path) -> None:
    models, out = inputs(tmp_path), tmp_path / "out"
    killed_before_it_cleans_up(models, out)
    before = snapshot(out).keys()
    with pytest.raises(OutputError, match="not empty"):
        merge(models, out, weights=[2, 1])
    assert snapshot(out).keys() == before
    merge(models, tmp_path / "whole", weights=[2, 1])
    merge(models, out, weights=[2, 1], overwrite=True)
    assert files(out) == files(tmp_path / "whole")


def test_a_complete_output_that_was_damaged_meanwhile_is_not_taken_as_it_is(
    tmp_path: Path,
) -> None:
    models, out = inputs(tmp_path), tmp_path / "out"
    merge(models, tmp_path / "whole")
    killed_before_it_cleans_up(models, out)
    shard = sorted(out.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(OutputError, match="not empty"):
        merge(models, out)
    merge(models, out, overwrite=True)
    assert files(out) == files(tmp_path / "whole")
