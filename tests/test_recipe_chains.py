"""A recipe as the input of another: in place, as a file, as the base model, in a slice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import streammerge
from streammerge.errors import RecipeError
from streammerge.recipe import Recipe
from tests.support.checkpoints import (
    Tensors,
    add_side_files,
    like,
    random_tensors,
    write_checkpoint,
)
from tests.support.checkpoints import read_checkpoint as read_back
from tests.support.merging import assert_exact
from tests.support.outputs import sha256
from tests.support.recipes import llama_names, named_tensors, read

INNER = """
merge_method: linear
models: [a, b]
"""
NESTED = """
merge_method: linear
models:
  - model:
      merge_method: linear
      models: [a, b]
  - c
"""
NAMED = """
merge_method: linear
models: [inner.yml, c]
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensors]:
    monkeypatch.chdir(tmp_path)
    base = random_tensors(1, (torch.bfloat16,))
    models = {name: like(base, seed) for seed, name in enumerate("abc")}
    for name, tensors in models.items():
        add_side_files(write_checkpoint(Path(name), tensors))
    Path("inner.yml").write_text(INNER)
    return models


def test_one_rounding_for_the_whole_chain(models: dict[str, Tensors], tmp_path: Path) -> None:
    streammerge.merge(read(tmp_path, NESTED), "out")
    found = read_back(Path("out"))
    for name in models["a"]:
        assert_exact(found[name], [models[m][name] for m in "abc"], [1, 1, 2])


def test_in_place_and_as_a_file_are_the_same(models: dict[str, Tensors], tmp_path: Path) -> None:
    for name, text in (("one", NESTED), ("two", NAMED)):
        streammerge.merge(read(tmp_path, text), name)
        assert not streammerge.verify(name, recompute="all").findings
    files = [Path(name) / "model.safetensors" for name in ("one", "two")]
    assert sha256(files[0]) == sha256(files[1])


def test_what_is_read_is_known_for_all_levels(models: dict[str, Tensors], tmp_path: Path) -> None:
    recipe = read(tmp_path, NESTED)
    assert recipe.inputs == ("(linear of a, b)", "c")
    assert recipe.references == ("a", "b", "c")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    named = read(tmp_path, NAMED)
    assert named.inputs == ("inner.yml", "c")
    assert named.recipes["inner.yml"] == recipe.recipes["(linear of a, b)"]


def test_two_inner_recipes_of_the_same_models_are_two(
    models: dict[str, Tensors], tmp_path: Path
) -> None:
    recipe = read(
        tmp_path,
        """
        merge_method: linear
        models:
          - model: {merge_method: linear, models: [a, b]}
          - model: {merge_method: linear, models: [a, {model: b, parameters: {weight: 3}}]}
          - model: {merge_method: linear, models: [a, b]}
        """,
    )
    first, second, third = recipe.inputs
    assert first == third != second


def test_a_recipe_as_the_base_model(models: dict[str, Tensors], tmp_path: Path) -> None:
    text = "merge_method: task_arithmetic\nbase_model: inner.yml\nmodels: [c]\n"
    streammerge.merge(read(tmp_path, text), "out")
    found = read_back(Path("out"))
    for name, tensor in models["c"].items():  # base + (c − base)
        assert torch.allclose(found[name].double(), tensor.double(), rtol=0.01, atol=1e-4)


def test_layers_of_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {name: named_tensors(llama_names(3), seed) for seed, name in enumerate("ab")}
    for name, tensors in given.items():
        add_side_files(write_checkpoint(Path(name), tensors), {"num_hidden_layers": 3})
    recipe = read(
        tmp_path,
        """
        merge_method: linear
        slices:
          - sources: [{model: {merge_method: linear, models: [a, b]}, layer_range: [1, 3]}]
          - sources: [{model: a, layer_range: [0, 1]}]
        """,
    )
    streammerge.merge(recipe, "out")
    found = read_back(Path("out"))
    here, there = (f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 2))
    assert_exact(found[here], [given[name][there] for name in "ab"])


def test_an_inner_recipe_is_planned_with_its_own_errors(
    models: dict[str, Tensors], tmp_path: Path
) -> None:
    Path("inner.yml").write_text("merge_method: ties\nmodels: [a, b]\n")
    with pytest.raises(RecipeError, match="ties works on differences to a base model"):
        streammerge.merge(read(tmp_path, NAMED), "out")
    assert not Path("out").exists()
