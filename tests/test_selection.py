"""Checkpoints of a run: in order by step, chosen, and averaged by a schedule."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.errors import RecipeError
from streammerge.recipe import Selection, average_recipe
from streammerge.recipe.selection import expand, in_order, select, step_of
from tests.support.checkpoints import add_side_files, read_checkpoint, write_checkpoint
from tests.support.cli import in_process
from tests.support.merging import assert_exact
from tests.support.recipes import read

STEPS = [500, 1000, 1500, 2000, 10000]
RUN = [f"run/checkpoint-{step}" for step in STEPS]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("run/checkpoint-500", 500),
        ("run/checkpoint-500/", 500),
        ("run/step-01000", 1000),
        ("run/step_20", 20),
        ("out/iter_0000500", 500),
        ("out/global_step1000", 1000),
        ("run/epoch=3-step=900.safetensors", 900),
        ("run/epoch_3", 3),
        ("allenai/OLMo-2@step1000-tokens4B", 1000),
        ("run/7", 7),
        ("run/checkpoint-500/model.safetensors", 500),
        ("Llama-3-8B", None),
        ("run/final", None),
        ("steps/abc", None),
    ],
)
def test_the_step_stands_in_the_name(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_steps_are_numbers_and_not_words() -> None:
    shuffled = RUN[:]
    random.Random(1).shuffle(shuffled)
    assert sorted(RUN) != RUN
    assert in_order(shuffled) == RUN


def test_without_steps_the_order_is_as_given() -> None:
    assert in_order(["b", "a", "c"]) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("selection", "steps"),
    [
        (Selection(), STEPS),
        (Selection(last=2), [2000, 10000]),
        (Selection(every=2), [500, 1500, 10000]),
        (Selection(every=2, last=2), [1500, 10000]),
        (Selection(steps="1000:"), [1000, 1500, 2000, 10000]),
        (Selection(steps=":1500"), [500, 1000, 1500]),
        (Selection(steps="1000:2000"), [1000, 1500, 2000]),
        (Selection(steps="1000:2000:500"), [1000, 1500, 2000]),
        (Selection(steps="500::1000"), [500, 1500]),
        (Selection(steps="::1000"), [1000, 2000, 10000]),
        (Selection(steps="500:2000", every=3, last=1), [2000]),
    ],
)
def test_selection(selection: Selection, steps: list[int]) -> None:
    assert select(RUN[::-1], selection) == [f"run/checkpoint-{step}" for step in steps]


@pytest.mark.parametrize(
    ("references", "selection", "pattern"),
    [
        (RUN, Selection(last=6), "last 6 .* 5 checkpoints"),
        (RUN, Selection(last=0), "1 or more"),
        (RUN, Selection(steps="1000:3000:500"), "no checkpoint is of step 2500, 3000"),
        (RUN, Selection(steps="3000:4000"), "no checkpoint lies there"),
        (RUN, Selection(steps="1000"), "cannot be read"),
        (RUN, Selection(steps="a:b"), "cannot be read"),
        (RUN, Selection(steps="2000:1000"), "cannot be read"),
        (RUN, Selection(steps="1:2:0"), "cannot be read"),
        ([*RUN, "run/final"], Selection(last=2), "run/final"),
        (["a", "b"], Selection(last=2), "no training step"),
        (["x/step-1", "y/step-1"], Selection(), "both of step 1"),
    ],
)
def test_what_cannot_be_chosen(references: list[str], selection: Selection, pattern: str) -> None:
    with pytest.raises(RecipeError, match=pattern):
        select(references, selection)


def test_patterns_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in RUN:
        Path(name).mkdir(parents=True)
    Path("odd[1]").mkdir()
    assert set(expand(["run/checkpoint-*"])) == set(RUN)
    assert expand(["odd[1]", "org/name@step1000"]) == ["odd[1]", "org/name@step1000"]
    with pytest.raises(RecipeError, match="matches nothing"):
        expand(["run/step-*"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five checkpoints, each a constant."""
    folder = tmp_path_factory.mktemp("run")
    for step in STEPS:
        path = folder / f"checkpoint-{step}"
        write_checkpoint(path, {"w": torch.full((64,), float(step), dtype=torch.float64)})
        add_side_files(path)
    return folder


def mean(out: Path) -> float:
    values = read_checkpoint(out)["w"]
    assert len(values.unique()) == 1
    return float(values[0])


def test_ema_over_the_last_checkpoints(run: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"schedule": "ema:0.2", "last": 3}
    streammerge.average([run / "checkpoint-*"], tmp_path / "out", **options)
    expected = Fraction(1500) / 25 + Fraction(4, 25) * 2000 + Fraction(4, 5) * 10000
    assert mean(tmp_path / "out") == float(expected)


def test_the_same_from_a_recipe_and_the_command_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"checkpoints: {run}/checkpoint-*\nsteps: 500:2000\nevery: 3\nschedule: wsm:cosine"
    recipe = read(tmp_path, text)
    assert [model.model for model in recipe.models] == [
        str(run / "checkpoint-500"),
        str(run / "checkpoint-2000"),
    ]
    streammerge.merge(recipe, tmp_path / "a")
    shuffled = [str(run / f"checkpoint-{step}") for step in (10000, 2000, 500, 1500, 1000)]
    done = in_process(
        capsys,
        *("average", *shuffled, "-o", tmp_path / "b"),
        *("--steps", "500:2000", "--every", 3, "--schedule", "wsm:cosine"),
    )
    assert done.code == 0, done.err
    assert mean(tmp_path / "a") == mean(tmp_path / "b") == 1250


def test_the_coefficient_of_every_checkpoint_is_shown_before_anything_starts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("average", run / "checkpoint-*", "-o", tmp_path / "out", "--schedule", "ema:0.2")
    shown = in_process(capsys, *words, "--dry-run")
    rows = [line.split() for line in shown.out.splitlines() if "checkpoint-" in line]
    assert [row[0] for row in rows] == ["0.0016", "0.0064", "0.032", "0.16", "0.8"]
    assert [step_of(row[-1]) for row in rows] == STEPS
    told = json.loads(in_process(capsys, *words, "--dry-run", "--json").out)
    assert list(told["coefficients"].values()) == [0.0016, 0.0064, 0.032, 0.16, 0.8]
    assert not (tmp_path / "out").exists()


def test_shares_of_sixteen_bit_checkpoints_are_exact(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    models = [torch.randn(4096, generator=generator).to(torch.bfloat16) for _ in range(4)]
    for step, model in enumerate(models):
        write_checkpoint(tmp_path / f"step-{step}", {"w": model})
    streammerge.average([tmp_path / "step-*"], tmp_path / "out", schedule="ema:0.5")
    assert_exact(read_checkpoint(tmp_path / "out")["w"], models, [1, 1, 2, 4])


def test_an_irrational_schedule_is_kept_as_doubles() -> None:
    recipe = average_recipe(
        [f"step-{i}" for i in range(5)], None, "auto", (), (), None, "wsm:cosine"
    )
    assert all(isinstance(weight, float) for weight in recipe.schedule_weights())
    assert sum(recipe.schedule_weights()) == pytest.approx(1)


def test_long_runs_do_not_need_numbers_without_end() -> None:
    models = [f"step-{i}" for i in range(2000)]
    recipe = average_recipe(models, None, "auto", (), (), None, "ema:0.99")
    weights = recipe.schedule_weights()
    assert len(weights) == 2000
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"weights": [1, 2, 3, 4, 5], "schedule": "uniform"}, "weights beside a schedule"),
        ({"weights": [1, 2], "last": 2}, "weights beside a schedule"),
        ({"last": 1}, "at least two models, not 1"),
        ({"schedule": "explicit:1,2"}, "2 numbers for 5 checkpoints"),
    ],
)
def test_options_that_do_not_go_together(
    run: Path, tmp_path: Path, options: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(RecipeError, match=pattern):
        streammerge.average([run / "checkpoint-*"], tmp_path / "out", **options)
