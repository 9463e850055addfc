"""An output folder that must not be written to is refused before anything in it is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import streammerge
from tests.support.checkpoints import Tensors, random_tensors, write_checkpoint
from tests.support.merging import refusal, snapshot

Run = Callable[..., object]
BOTH = pytest.mark.parametrize(
    "run", [streammerge.average, streammerge.plan_average], ids=["average", "plan"]
)


def layers(count: int) -> Tensors:
    return {f"layers.{i}.weight": torch.full((4, 2), float(i)) for i in range(count)}


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "a", layers(3), config={"model_type": "toy"})


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "b", layers(3), shards=3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@BOTH
@pytest.mark.parametrize("place", ["a", "a/sub", "a/x/y", "link", "link/sub", "./b/../a", "."])
def test_out_that_is_an_input_or_inside_one_or_around_it(
    tmp_path: Path, a: Path, b: Path, run: Run, place: str
) -> None:
    (tmp_path / "link").symlink_to(a)
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        refusal(
            lambda o=overwrite: run([str(a), str(b)], str(tmp_path / place), overwrite=o),
            "input|inside|model|contains",
        )
    assert snapshot(tmp_path) == before


@BOTH
def test_out_is_the_folder_of_a_file_given_as_input(a: Path, b: Path, run: Run) -> None:
    before = snapshot(a, b)
    file = a / "model.safetensors"
    refusal(lambda: run([str(file), str(b)], str(a), overwrite=True), "input|inside|model")
    assert snapshot(a, b) == before


@BOTH
def test_out_that_is_not_empty_needs_overwrite(a: Path, b: Path, out: Path, run: Run) -> None:
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    before = snapshot(out)
    refusal(lambda: run([str(a), str(b)], str(out)), "empty", "overwrite")
    assert snapshot(out) == before


@BOTH
@pytest.mark.parametrize("content", ["notes.txt", "photos/summer.jpg", ".git/config"])
def test_overwrite_spares_a_folder_that_is_no_checkpoint(
    a: Path, b: Path, out: Path, run: Run, content: str
) -> None:
    (out / content).parent.mkdir(parents=True)
    (out / content).write_text("mine")
    before = snapshot(out)
    refusal(lambda: run([str(a), str(b)], str(out), overwrite=True), "checkpoint|overwrite")
    assert snapshot(out) == before


@BOTH
def test_out_that_is_a_file(a: Path, b: Path, out: Path, run: Run) -> None:
    out.write_text("mine")
    for overwrite in (False, True):
        refusal(lambda o=overwrite: run([str(a), str(b)], str(out), overwrite=o), "file|folder")
    assert out.read_text() == "mine"


def test_overwrite_replaces_an_old_checkpoint_whole(a: Path, b: Path, out: Path) -> None:
    write_checkpoint(out, random_tensors(9), shards=4, config={"model_type": "old"})
    streammerge.average([str(a), str(b)], str(out), overwrite=True)
    assert [p.name for p in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert (out / "config.json").read_text() == (a / "config.json").read_text()


def test_an_empty_out_needs_no_overwrite(a: Path, b: Path, out: Path) -> None:
    out.mkdir()
    streammerge.average([str(a), str(b)], str(out))
    assert (out / "model.safetensors").exists()
