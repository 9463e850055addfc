"""Recipes as large and as deep as may be, and aliases that repeat themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammerge.errors import RecipeError
from streammerge.recipe import load_recipe
from tests.fuzzing.bounds import survives
from tests.fuzzing.targets import TARGETS

LAUGHS = ("laughs", "merged laughs", "laughing weights")
RECIPES = {
    "10 MB": "a: " + "x" * 10_000_000,
    "list": "models:\n" + "- x\n" * 249_000,
    "flow": "models: [" + "x," * 499_000 + "]",
    "flow lists": "models: [" + "[]," * 330_000 + "]",
    "deep flow": "[" * 999_000,
    "deep mappings": "{a: " * 200_000,
    "deep blocks": "- " * 499_000,
    "deep keys": "? " * 499_000,
    "mapping": "".join(f"k{i}: 1\n" for i in range(90_000)),
    "many models": "merge_method: linear\nmodels:\n"
    + "- {model: a, parameters: {weight: 1}}\n" * 5_000,
    "long word": "merge_method: " + "x" * 999_000,
    "long number": "seed: " + "9" * 999_000,
    "long key": '? "' + "x" * 990_000 + '"\n: 1',
    "escapes": 'a: "' + "\\x41" * 249_000 + '"',
    "lines": "a: " + "x\n " * 330_000,
    "empty lines": "\n" * 999_000,
    "comments": "#\n" * 499_000,
    "directives": "%x\n" * 333_000,
    "tag": "a: " + "!" * 999_000,
    "documents": "---\n" * 249_000,
    "anchors": "a: [" + "".join(f"&a{i} x," for i in range(90_000)) + "]",
    "laughs": "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [" + f"*a{i - 1}," * 9 + "]\n" for i in range(1, 12)),
    "merged laughs": "a0: &a0 {k: v}\n"
    + "".join(f"a{i}: &a{i}\n  <<: [" + f"*a{i - 1}," * 9 + "]\n" for i in range(1, 12)),
    "laughing weights": "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight:\n"
    + "    - &a0 [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"    - &a{i} [" + f"*a{i - 1}," * 9 + "]\n" for i in range(1, 12)),
}


FAST = ("10 MB", "flow lists", "deep flow", "directives", "long number", "long key", *LAUGHS)


@pytest.mark.parametrize(
    "kind",
    [kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in RECIPES],
)
def test_a_large_or_deep_recipe(kind: str) -> None:
    survives(TARGETS["recipe"].read, RECIPES[kind].encode())


@pytest.mark.parametrize("kind", LAUGHS)
def test_laughs_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPES[kind])
    with pytest.raises(RecipeError):
        load_recipe(path)
