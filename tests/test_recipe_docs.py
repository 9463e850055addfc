"""docs/recipes.md: every example can be read, every key and schedule is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streammerge.methods import METHODS
from streammerge.recipe import Recipe
from streammerge.recipe.keys import KEYS
from streammerge.schedules import SCHEDULES
from tests.support.recipes import read

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S)


@pytest.mark.parametrize("text", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_can_be_read(tmp_path: Path, text: str) -> None:
    for step in range(500, 4001, 500):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    recipe = read(tmp_path, text.replace("{run}", str(tmp_path / "run")))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    METHODS.get(recipe.method)


def test_every_key_and_every_schedule_is_explained() -> None:
    for key in KEYS:
        assert re.search(rf"(`|^\s*){key}(:|`)", PAGE, re.M), key
    for name in SCHEDULES:
        assert f"`{name}" in PAGE, name


def test_what_is_said_of_the_checkpoints_example_is_true(tmp_path: Path) -> None:
    text = next(text for text in EXAMPLES if "checkpoints:" in text)
    for step in range(500, 4001, 500):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    recipe = read(tmp_path, text.replace("{run}", str(tmp_path / "run")))
    steps = [int(model.model.rpartition("-")[2]) for model in recipe.models]
    assert steps == [2000, 3000, 4000]
