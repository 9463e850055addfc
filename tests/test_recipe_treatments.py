"""Filters, gradients, precedence and rules, against small references of their own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammerge.methods import METHODS
from streammerge.methods.parameters import resolve
from streammerge.recipe import Recipe, Treatment
from streammerge.recipe.layers import Layers, comes_before_layers
from streammerge.recipe.settings import interpolate
from tests.support.recipes import layer_names, llama_names, read

NUMBERS = st.decimals(-100, 100, places=4, allow_nan=False).map(float)


def treatment(recipe: Recipe, name: str, layers: int = 5) -> Treatment:
    return recipe.treatments([*llama_names(layers), name])[name]


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.integers(1, 40), st.data())
def test_gradients_are_piecewise_linear(
    values: list[float], layers: int, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(0, layers - 1))
    t = Fraction(layer, layers - 1) if layers > 1 else Fraction(1)
    points = np.linspace(0, 1, len(values)) if len(values) > 1 else np.array([0.0])
    expected = np.interp(float(t), points, values)
    assert interpolate(list(values), t) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_decimals_of_a_gradient_count_as_written() -> None:
    # In binary, 0.1 + (0.3 - 0.1) / 2 is 0.2 only by luck, and (1 - t) · 0.1 + t · 0.7 is not 0.3.
    assert interpolate([0.1, 0.3], Fraction(1, 2)) == 0.2
    assert interpolate([0.1, 0.7], Fraction(1, 3)) == 0.3
    assert interpolate([0, 3], Fraction(1, 3)) == 1
    assert isinstance(interpolate([0, 3], Fraction(1, 3)), int)


@pytest.mark.parametrize(
    ("t", "chosen"), [(0, "a"), (0.49, "a"), (0.5, "b"), (0.99, "b"), (1, "c")]
)
def test_words_switch_and_do_not_mix(t: float, chosen: str) -> None:
    assert interpolate(["a", "b", "c"], Fraction(t)) == chosen
    assert interpolate([True, False], Fraction(t)) is (t < 1)


def test_layers_are_counted_stack_by_stack() -> None:
    towers = {"text_model.encoder.layers": 3, "vision_model.encoder.layers": 5, "h": 1}
    names = [name for stack, count in towers.items() for name in layer_names(count, stack)]
    layers = Layers([*names, "logit_scale", "visual_projection.weight"])
    assert layers.counts == towers
    assert layers.depth("vision_model.encoder.layers.1.mlp.weight") == Fraction(1, 4)
    assert layers.depth("text_model.encoder.layers.1.mlp.weight") == Fraction(1, 2)
    assert layers.depth("h.0.mlp.weight") == 1  # a stack of one
    assert layers.depth("logit_scale") == 0


@pytest.mark.parametrize(
    ("name", "stack", "number"),
    [
        ("model.layers.12.mlp.experts.3.up.weight", "model.layers", 12),
        ("transformer.h.0.ln_1.weight", "transformer.h", 0),
        ("encoder.block.7.layer.1.weight", "encoder.block", 7),
        ("0.auto_model.encoder.layer.3.weight", "0.auto_model.encoder.layer", 3),
    ],
)
def test_the_first_number_between_dots_is_the_layer(name: str, stack: str, number: int) -> None:
    layer = Layers([name]).find(name)
    assert layer is not None
    assert (layer.stack, layer.number) == (stack, number)
    assert layer.renumbered(5) == name.replace(f"{stack}.{number}.", f"{stack}.5.", 1)


@pytest.mark.parametrize("name", ["lm_head.weight", "layers.007.w", "blocks.3", "model.layer3.w"])
def test_other_numbers_are_no_layers(name: str) -> None:
    assert Layers([name]).find(name) is None


def test_a_recipe_can_say_which_numbers_are_layers() -> None:
    names = ["net.0.blocks.3.attn.2.weight", "net.0.blocks.7.attn.0.weight", "net.1.weight"]
    layers = Layers(names, ["*.blocks.*"])
    assert layers.counts == {"net.0.blocks": 8}
    assert layers.depth("net.1.head.weight") == 0


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wpe.weight"])
def test_embeddings_go_with_the_first_layers_and_heads_with_the_last(name: str) -> None:
    assert comes_before_layers(name)
    assert not comes_before_layers("lm_head.weight")
    assert comes_before_layers("lm_head.weight", ["lm_*"])
    assert not comes_before_layers(name, ["lm_*"])


def test_the_first_filter_that_fits_counts(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        merge_method: slerp
        base_model: a
        models: [a, b]
        parameters:
          t:
            - {filter: layers.1., value: 0.9}
            - {filter: self_attn, value: [0, 1]}
            - {filter: "*", value: 0.4}
            - {value: 0.1}
        """,
    )
    expected = {
        "model.layers.1.self_attn.q_proj.weight": 0.9,
        "model.layers.2.self_attn.q_proj.weight": 0.5,
        "model.layers.2.mlp.up_proj.weight": 0.4,
        "lm_head.weight": 0.4,
    }
    found = {name: treatment(recipe, name).parameters["t"] for name in expected}
    assert found == expected


def test_where_no_filter_fits_the_next_scope_has_its_say(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        merge_method: linear
        models:
          - model: a
            parameters: {weight: [{filter: mlp, value: 3}]}
          - model: b
        parameters: {weight: 2}
        """,
    )
    mlp = treatment(recipe, "model.layers.0.mlp.up_proj.weight")
    head = treatment(recipe, "lm_head.weight")
    assert (mlp.each, mlp.parameters) == (({"weight": 3}, {}), {"weight": 2})
    assert (head.each, head.parameters) == (({}, {}), {"weight": 2})


PRECEDENCE = """
merge_method: ties
base_model: b
modules:
  default:
    slices:
      - sources:
          - {{model: b, layer_range: [0, 5]}}
          - {{model: a, layer_range: [0, 5], parameters: {{{source}}}}}
        parameters: {{{slice}}}
    parameters: {{{module}}}
parameters: {{{all}}}
rules:
  - tensors: "*.norm.*"
    parameters: {{{rule}}}
"""


@pytest.mark.parametrize("highest", range(5))
def test_precedence(tmp_path: Path, highest: int) -> None:
    scopes = ["rule", "source", "slice", "module", "all"]
    said = {s: f"k: {n}" if n >= highest else "other: 1" for n, s in enumerate(scopes)}
    recipe = read(tmp_path, PRECEDENCE.format(**said))
    found = treatment(recipe, "model.norm.weight")
    assert found.each[1].get("k", found.parameters.get("k")) == highest


def test_rules_before_all_else(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        merge_method: ties
        base_model: c
        models:
          - {model: a, parameters: {weight: 1, density: 0.5}}
          - {model: b, parameters: {weight: 2, density: 0.5}}
        parameters: {normalize: true}
        rules:
          - {tensors: "*.norm.*", method: linear, weights: [3, 1]}
          - {tensors: "*.mlp.*", parameters: {density: 0.9}}
          - {tensors: "*embed*", action: keep, model: c}
          - {tensors: "lm_head.*", action: skip}
        skip: "*.bias"
        """,
    )
    norm = treatment(recipe, "model.norm.weight")
    assert (norm.method, norm.parameters) == ("linear", {})
    assert norm.each == ({"weight": 3}, {"weight": 1})
    mlp = treatment(recipe, "model.layers.0.mlp.up_proj.weight")
    assert (mlp.method, mlp.parameters) == ("ties", {"normalize": True, "density": 0.9})
    assert mlp.each == ({"weight": 1}, {"weight": 2})
    embedding = treatment(recipe, "model.embed_tokens.weight")
    assert (embedding.action, embedding.keep) == ("keep", 2)
    assert treatment(recipe, "lm_head.weight").action == "skip"
    assert treatment(recipe, "model.norm.bias").action == "skip"  # --skip before every rule
    plain = treatment(recipe, "model.layers.0.self_attn.q_proj.weight")
    assert (plain.inputs, plain.models, plain.base) == ((0, 1, 2), (0, 1), 2)


def test_what_only_saved_memory_is_no_parameter(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "merge_method: ties\nbase_model: a\nmodels: [a, b]\nparameters: {int8_mask: true, k: 1}",
    )
    assert treatment(recipe, "lm_head.weight").parameters == {"k": 1}
    assert recipe.notes == ["int8_mask changes nothing here: masks are never stored"]


@pytest.mark.parametrize(("written", "meant"), [("1.0", True), ("0", False), ("on", True)])
def test_truth_values_as_mergekits_evolution_writes_them(
    tmp_path: Path, written: str, meant: bool
) -> None:
    text = (
        f"merge_method: ties\nbase_model: a\nmodels: [a, b]\nparameters: {{normalize: {written}}}"
    )
    settings = treatment(read(tmp_path, text), "lm_head.weight").parameters
    parameters = METHODS.get("ties").parameters
    assert dict(resolve("ties", parameters, settings, [{}]))["normalize"] is meant


def test_many_tensors_and_models_are_resolved_quickly(tmp_path: Path) -> None:
    models = "\n".join(f"  - {{model: m{i}, parameters: {{weight: [0, {i}]}}}}" for i in range(100))
    recipe = read(tmp_path, f"merge_method: linear\nmodels:\n{models}\n")
    names = layer_names(2000)
    treatments = recipe.treatments(names)
    assert len({id(treatments[name]) for name in names}) == 2000
    assert len({id(treatments[name]) for name in names}) == 2000
