"""YAML → recipe: mergekit's format as people write it, and errors that say where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammerge.errors import RecipeError
from streammerge.recipe import Recipe
from tests.support.recipes import EVERYTHING, MODULES, SLICES, read


def test_mergekits_format_with_all_that_goes_beyond_it(tmp_path: Path) -> None:
    recipe = read(tmp_path, EVERYTHING)
    assert recipe.inputs == ("path/to/a", "org/b+org/adapter@main", "org/base@v1.0")
    assert recipe.base == 2
    assert recipe.donor == "path/to/a"
    assert recipe.dtype_code == "F32"
    said = recipe.model_dump(mode="json", exclude_defaults=True)
    assert said["models"][1]["parameters"]["weight"] == [
        {"filter": "mlp", "value": [0, 1]},
        {"value": 0.01},
    ]
    assert said["tokenizer"]["tokens"]["[PAD]"] == {
        "source": {"kind": "model_token", "model": "path/to/a", "token_id": 3},
        "force": True,
    }
    assert said["skip"] == ["*.rotary*"]


@pytest.mark.parametrize("text", [EVERYTHING, SLICES, MODULES], ids=["all", "slices", "modules"])
def test_a_recipe_comes_back_from_json_as_it_was(tmp_path: Path, text: str) -> None:
    recipe = read(tmp_path, text)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


def test_slices_become_positions_with_the_base_model_in_one_of_them(tmp_path: Path) -> None:
    recipe = read(tmp_path, SLICES)
    assert recipe.inputs == ("a[0:8] + a[0:2]", "b[8:16] + b[0:2]")
    assert recipe.base == 0
    assert recipe.references == ("a", "b")


def test_modules_say_which_part_is_which(tmp_path: Path) -> None:
    recipe = read(tmp_path, MODULES)
    assert recipe.inputs == ("a (vision) + a[0:2] (default)", "b (vision)")
    assert recipe.module_of("visual.blocks.0.mlp.weight") == "vision"
    assert recipe.module_of("model.norm.weight") == "default"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-5", 1e-5),  # a text in YAML 1.1
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("+3", 3),
        ("0", 0),
        ("true", True),
        ("yes", True),
        ("Off", False),
        ('"yes"', "yes"),
        ("'1e-5'", "1e-5"),
        ("1/3", "1/3"),
        ("2024-01-31", "2024-01-31"),  # a date in YAML 1.1
        ("base", "base"),
    ],
)
def test_what_a_value_means(tmp_path: Path, written: str, meant: object) -> None:
    recipe = read(tmp_path, f"merge_method: x\nmodels: [a]\nparameters: {{p: {written}}}")
    found = recipe.parameters["p"]
    assert found == meant
    assert type(found) is type(meant)


@pytest.mark.parametrize(
    "written", ["010", "0x1F", "1_000", "10:30", ".inf", "-.inf", ".nan", "1e999"]
)
def test_numbers_that_yaml_versions_disagree_on_are_refused(tmp_path: Path, written: str) -> None:
    with pytest.raises(RecipeError, match=r"line 3: p is .*no number to rely on"):
        read(tmp_path, f"merge_method: x\nmodels: [a]\nparameters: {{p: {written}}}")


@pytest.mark.parametrize("name", ["on", "1e3", "010", "10:30", "2024-01-01", "true", "0x1F"])
def test_names_are_texts_whatever_they_look_like(tmp_path: Path, name: str) -> None:
    recipe = read(tmp_path, f"merge_method: linear\nmodels: [{name}, {{model: {name}2}}]")
    assert recipe.inputs == (name, f"{name}2")


@settings(max_examples=50)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_that_python_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, number: float
) -> None:
    folder = tmp_path_factory.getbasetemp()
    recipe = read(folder, f"merge_method: x\nmodels: [a]\nparameters: {{p: {number!r}}}")
    assert recipe.parameters["p"] == number


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("{model: {path: org/a, revision: v1}, lora: {path: org/l}}", "org/a@v1+org/l"),
        ("{model: org/a@v1, lora: org/l@v2}", "org/a@v1+org/l@v2"),
        ("{path: some/folder}", "some/folder"),
        ("{model: {path: org/a, revision: null}, lora: null}", "org/a"),
    ],
)
def test_references_as_mergekit_writes_them_itself(
    tmp_path: Path, reference: str, meant: str
) -> None:
    recipe = read(tmp_path, f"merge_method: linear\nmodels:\n  - model: {reference}\n  - model: b")
    assert recipe.inputs == (meant, "b")


def test_nothing_is_not_a_value_but_the_same_as_no_key(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "merge_method: linear\nbase_model: ~\nmodels:\n  - {model: a, parameters: }\n  - model: b",
    )
    assert recipe.base_model is None
    assert recipe.models[0].parameters == {}


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        merge_method: ties
        base_model: c
        models:
          - model: a
            parameters: &p {weight: 0.5, density: 0.2}
          - model: b
            parameters: {<<: *p, density: 0.9}
        """,
    )
    assert recipe.models[1].parameters == {"weight": 0.5, "density": 0.9}


@pytest.mark.parametrize("name", ["simple_average", "weighted_average", "task_arithmetic"])
def test_the_method_may_stand_under_name(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, f"name: {name}\nmodels: [a, b]").method == name


def test_places(tmp_path: Path) -> None:
    recipe = read(tmp_path, EVERYTHING)
    lines = EVERYTHING.splitlines()
    path = str(tmp_path / "recipe.yml")
    for place, words in (
        (("models", 1, "parameters", "weight"), "weight:"),
        (("models", 0, "parameters", "density"), "parameters: {weight: 0.3"),
        (("models", 0, "parameters", "unheard", "of"), "parameters: {weight: 0.3"),
        (("rules", 1, "tensors"), '- tensors: ["*.bias"]'),
    ):
        line = next(i for i, text in enumerate(lines, start=1) if text.strip().startswith(words))
        assert recipe.place(place) == f"{path}, line {line}"
    again = Recipe.model_validate_json(recipe.model_dump_json())
    assert again.place(("models", 0, "parameters", "weight")) == "models[0].parameters.weight"
