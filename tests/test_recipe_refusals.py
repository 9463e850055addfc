"""Recipes that are refused: with file and line, and with what to do."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from streammerge.errors import RecipeError
from streammerge.recipe import load_recipe
from streammerge.recipe.syntax import MAX_BYTES
from tests.support.recipes import EVERYTHING, MODULES, SLICES, read

LINEAR = "merge_method: linear\n"
REFUSED = {
    "no method": ("models: [a, b]", ["line 1", "merge_method"]),
    "nothing to merge": (LINEAR, ["exactly one of models"]),
    "models and slices": (
        LINEAR + "models: [a]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        ["models and slices", "exactly one"],
    ),
    "no models": (LINEAR + "models: []", ["line 2", "models is empty"]),
    "a key twice": (LINEAR + "models: [a]\nmodels: [b]", ["line 3", "models", "twice"]),
    "a misspelt key": (LINEAR + "model:\n  - a", ["line 2", "'model'", "did you mean 'models'"]),
    "a misspelt key of a model": (
        LINEAR + "models:\n  - model: a\n    paramters: {}",
        ["line 4", "paramters", "did you mean 'parameters'"],
    ),
    "a setting one level too high": (
        LINEAR + "models:\n  - model: a\n    weight: 0.5",
        ["line 4", "weight", "below `parameters:`"],
    ),
    "layers of a whole model": (
        LINEAR + "models:\n  - model: a\n    layer_range: [0, 32]",
        ["line 4", "layer_range", "slices"],
    ),
    "residual_weight": (
        LINEAR + "slices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n    residual_weight: 1",
        ["line 4", "residual_weight", "does nothing"],
    ),
    "override_architecture": (
        LINEAR + "models:\n  - model: {model: a, override_architecture: X}",
        ["line 3", "override_architecture", "no table of architectures"],
    ),
    "an option of mergekit": (
        LINEAR + "trust_remote_code: true\nmodels: [a]",
        ["line 2", "option"],
    ),
    "random_seed": (LINEAR + "models: [a]\nrandom_seed: 1", ["line 3", "write `seed:`"]),
    "name beside merge_method": (LINEAR + "name: first\nmodels: [a]", ["line 2", "mergekit-multi"]),
    "two documents": (LINEAR + "models: [a]\n---\n" + LINEAR, ["line 3", "second document"]),
    "a parameter without a value": (
        LINEAR + "models: [a]\nparameters:\n  t:",
        ["line 4", "t has no value"],
    ),
    "an empty gradient": (LINEAR + "models: [a]\nparameters: {t: []}", ["line 3", "gradient"]),
    "a gradient of both kinds": (
        LINEAR + "models: [a]\nparameters: {t: [0.5, much]}",
        ["line 3", "numbers or words"],
    ),
    "a gradient of gradients": (LINEAR + "models: [a]\nparameters: {t: [[1], [2]]}", ["gradient"]),
    "filters and values mixed": (
        LINEAR + "models: [a]\nparameters:\n  t:\n    - filter: mlp\n      value: 1\n    - 0.5",
        ["line 4", "list of filters"],
    ),
    "a filter without a value": (
        LINEAR + "models: [a]\nparameters:\n  t:\n    - filter: mlp",
        ["line 5", "without a value"],
    ),
    "an unknown dtype": (LINEAR + "models: [a]\ndtype: bf16", ["line 3", "bf16", "bfloat16"]),
    "an empty range": (
        LINEAR + "slices:\n  - sources:\n    - {model: a, layer_range: [4, 4]}",
        ["line 4", "layer_range"],
    ),
    "a range of one": (
        LINEAR + "slices:\n  - sources:\n    - {model: a, layer_range: [4]}",
        ["line 4", "layer_range"],
    ),
    "a range of words": (
        LINEAR + "slices:\n  - sources:\n    - {model: a, layer_range: [all, 4]}",
        ["line 4", "'all'", "integer"],
    ),
    "sources of unequal length": (
        LINEAR
        + "slices:\n  - sources:\n    - {model: a, layer_range: [0, 4]}\n"
        + "    - {model: b, layer_range: [0, 3]}",
        ["line 3", "equally many layers"],
    ),
    "a source twice in a slice": (
        LINEAR
        + "slices:\n  - sources:\n    - {model: a, layer_range: [0, 4]}\n"
        + "    - {model: a, layer_range: [4, 8]}",
        ["line 3", "each model once"],
    ),
    "a rule without a wish": (
        LINEAR + "models: [a]\nrules:\n  - tensors: x",
        ["line 4", "method, parameters, weights or an action"],
    ),
    "a rule that keeps and merges": (
        LINEAR + "models: [a]\nrules:\n  - {tensors: x, action: keep, method: ties}",
        ["line 4", "goes with no method"],
    ),
    "a rule with too few weights": (
        LINEAR + "models: [a, b]\nrules:\n  - {tensors: x, weights: [1]}",
        ["one for each model"],
    ),
    "a rule with an unknown model": (
        LINEAR + "models: [a, b]\nrules:\n  - {tensors: x, action: keep, model: c}",
        ["none of the inputs"],
    ),
    "an unknown action": (
        LINEAR + "models: [a]\nrules:\n  - {tensors: x, action: copy}",
        ["line 4", "action", "keep"],
    ),
    "layers without a number": (LINEAR + "models: [a]\nlayers: model.layers", ["end with"]),
    "a module with models and slices": (
        LINEAR
        + "modules:\n  default:\n    models: [a]\n"
        + "    slices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        ["line 3", "either models or slices"],
    ),
    "a tokenizer twice": (
        LINEAR + "models: [a]\ntokenizer_source: union\ntokenizer: {source: base}",
        ["tokenizer_source", "both"],
    ),
    "a tokenizer with an unknown key": (
        LINEAR + "models: [a]\ntokenizer: {sources: base}",
        ["line 3", "did you mean 'source'"],
    ),
    "a schedule of nothing known": (
        LINEAR + "models: [a, b]\nschedule: emma:0.2",
        ["line 3", "emma", "ema"],
    ),
    "a schedule for another method": (
        "merge_method: ties\nbase_model: c\nmodels: [a, b]\nschedule: ema:0.2",
        ["for averages"],
    ),
    "a schedule beside weights": (
        LINEAR + "models: [a, {model: b, parameters: {weight: 1}}]\nschedule: ema:0.2",
        ["sets the weights"],
    ),
    "steps without checkpoints": (LINEAR + "models: [a, b]\nlast: 3", ["line 3", "checkpoints:"]),
    "checkpoints that are not there": (
        LINEAR + "checkpoints: nowhere/checkpoint-*",
        ["line 2", "matches nothing"],
    ),
    "a tag": (LINEAR + "models: !!python/object/apply:os.system [x]", ["line 2", "tag"]),
    "a tag of YAML itself": (LINEAR + "models: [a]\nseed: !!int '3'", ["line 3", "tag"]),
    "no YAML": (LINEAR + "models: [a", ["line", "not YAML"]),
    "a tab": (LINEAR + "models:\n\t- a", ["line 3", "not YAML"]),
    "a list": ("- a\n- b", ["line 1", "mapping"]),
    "a word": ("linear", ["line 1", "mapping"]),
    "a NUL": ("merge_method: li\0near", ["not YAML"]),
    "an alias to nothing": (LINEAR + "models: *a", ["line 2", "not YAML"]),
    "an alias to itself": (LINEAR + "models: &a [*a]", ["line 2"]),
    "a merge key to itself": (LINEAR + "parameters: &a {<<: *a}\nmodels: [a]", ["40 deep"]),
    "deep nesting": (LINEAR + "models: " + "[" * 3000, ["nested|not YAML"]),
    "nothing": ("# a comment", ["empty"]),
}


@pytest.mark.parametrize(("text", "patterns"), REFUSED.values(), ids=REFUSED)
def test_refused_with_its_place(tmp_path: Path, text: str, patterns: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    message = str(caught.value).replace(str(tmp_path / "recipe.yml"), "recipe.yml")
    assert message.startswith("recipe.yml")
    for pattern in patterns:
        assert re.search(pattern.replace("(", r"\("), message, re.I), message


def test_a_billion_laughs_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    begin = time.monotonic()
    with pytest.raises(RecipeError, match="unknown key 'a0'"):
        read(tmp_path, "\n".join(lines))
    nested = "models: &m0 {model: a}\n"
    for i in range(1, 12):
        nested += f"x{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n"
    with pytest.raises(RecipeError):
        read(tmp_path, nested + LINEAR + "parameters: *m11\n")
    assert time.monotonic() - begin < 20


def test_laughs_below_parameters_are_counted(tmp_path: Path) -> None:
    text = LINEAR + "models: [a]\nparameters:\n  p0: &m0 {value: 1}\n"
    text += "".join(
        f"  p{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
    )
    with pytest.raises(RecipeError, match=r"over 30,000 parts"):
        read(tmp_path, text)


def test_a_file_beyond_all_measure_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"{MAX_BYTES + 1:,} bytes"):
        read(tmp_path, "#" * (MAX_BYTES + 1))


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"a: \xc3\x28", b"\x00\x01\x02"])
def test_a_file_that_is_no_text(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "recipe.yml"
    path.write_bytes(raw)
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(path)


@pytest.mark.parametrize("path", ["missing.yml", ".", "a\0b.yml"])
def test_a_file_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / path)


def test_an_error_in_a_recipe_within_a_recipe_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "inner.yml").write_text("merge_method: linear\nmodles: [a, b]\n")
    with pytest.raises(RecipeError, match=r"inner.yml, line 2: unknown key 'modles'") as caught:
        read(
            tmp_path,
            f"merge_method: linear\nmodels:\n  - model: {tmp_path}/inner.yml\n  - model: b",
        )
    assert "recipe.yml, line 3" in caught.value.__notes__[0]


def test_a_recipe_that_leads_to_itself(tmp_path: Path) -> None:
    (tmp_path / "one.yml").write_text(f"merge_method: linear\nmodels: [{tmp_path}/two.yml, b]\n")
    (tmp_path / "two.yml").write_text(f"merge_method: linear\nmodels: [{tmp_path}/one.yml, b]\n")
    with pytest.raises(RecipeError, match="leads back to itself"):
        load_recipe(tmp_path / "one.yml")


def _mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping whose keys are ours to know."""
    free = path[-1:] in (("parameters",), ("tokens",), ("modules",))
    if isinstance(value, dict):
        yield from [] if free else [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from _mappings(inner, (*path, key))


CASES = [
    (text, path)
    for text in (EVERYTHING, SLICES, MODULES)
    for path in _mappings(yaml.safe_load(text))
]


@pytest.mark.parametrize(("text", "path"), CASES, ids=[str(path) for _, path in CASES])
def test_a_key_that_has_no_meaning_is_refused_wherever_it_stands(
    tmp_path: Path, text: str, path: tuple[Any, ...]
) -> None:
    content = copy.deepcopy(yaml.safe_load(text))
    place = content
    for key in path:
        place = place[key]
    place["wieght"] = 1
    written = yaml.safe_dump(content)
    line = next(i for i, text in enumerate(written.splitlines(), start=1) if "wieght" in text)
    with pytest.raises(RecipeError, match=f"line {line}: unknown key 'wieght'"):
        read(tmp_path, written)
