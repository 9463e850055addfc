"""Slices and modules: layers of several models as one, bytes, config and all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import streammerge
from streammerge.checkpoint import Checkpoint, open_checkpoint
from streammerge.errors import CoverageError, RecipeError, StreammergeError
from streammerge.inputs import open_inputs
from tests.support.checkpoints import Tensors, read_checkpoint, tiny_llama
from tests.support.recipes import layer_names, llama_names, read, write_named

CONFIG: dict[str, Any] = {
    "model_type": "toy",
    "dtype": "bfloat16",
    "num_hidden_layers": 6,
    "layer_types": [f"kind {i}" for i in range(6)],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        config = CONFIG | {"layer_types": [f"{name}{i}" for i in range(6)]}
        write_named(folder / name, llama_names(6), seed, config)
    return folder


@pytest.fixture(scope="module")
def tensors(models: Path) -> dict[str, Tensors]:
    return {name: read_checkpoint(models / name) for name in "abc"}


def merge(models: Path, folder: Path, text: str) -> Path:
    for name in "abc":
        text = text.replace(f"model: {name}", f"model: {models}/{name}")
    streammerge.merge(read(folder, text), folder / "out")
    return folder / "out"


FRANKENMERGE = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 4]}]
  - sources: [{model: b, layer_range: [2, 6]}]
  - sources: [{model: a, layer_range: [5, 6]}]
"""


def test_a_frankenmerge_is_the_layers_one_after_the_other(
    models: Path, tensors: dict[str, Tensors], tmp_path: Path
) -> None:
    out = merge(models, tmp_path, FRANKENMERGE)
    origins = [("a", i) for i in range(4)] + [("b", i) for i in range(2, 6)] + [("a", 5)]
    expected = {name: tensors["a"][name] for name in llama_names(0)}
    for layer, (model, old) in enumerate(origins):
        for part in ("self_attn.q_proj", "mlp.up_proj"):
            source = tensors[model][f"model.layers.{old}.{part}.weight"]
            expected[f"model.layers.{layer}.{part}.weight"] = source
    found = read_checkpoint(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 9
    assert config["layer_types"] == [f"{model}{old}" for model, old in origins]
    assert config["model_type"] == "toy"


def test_the_head_comes_from_the_last_slice_and_the_embedding_from_the_first(
    models: Path, tensors: dict[str, Tensors], tmp_path: Path
) -> None:
    slices = FRANKENMERGE.rsplit("  - ", 1)[0]
    found = read_checkpoint(merge(models, tmp_path, slices))
    for name, model in zip(llama_names(0), "abb", strict=True):
        assert torch.equal(found[name], tensors[model][name])
    (tmp_path / "other").mkdir()
    chosen = slices + "before_layers: [lm_head.*]"
    found = read_checkpoint(merge(models, tmp_path / "other", chosen))
    for name, model in zip(llama_names(0), "bba", strict=True):
        assert torch.equal(found[name], tensors[model][name])


def test_other_layers_of_two_models_are_merged_under_the_outputs_names(
    models: Path, tensors: dict[str, Tensors], tmp_path: Path
) -> None:
    out = merge(
        models,
        tmp_path,
        """
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: 3}}
              - {model: b, layer_range: [4, 6], parameters: {weight: 1}}
          - sources:
              - {model: c, layer_range: [1, 2]}
              - {model: a, layer_range: [5, 6]}
        """,
    )
    found = read_checkpoint(out)
    for layer, terms in enumerate(
        [("a", 0, 3, "b", 4, 1), ("a", 1, 3, "b", 5, 1), ("c", 1, 1, "a", 5, 1)]
    ):
        for name, here in zip(layer_names(6)[layer * 2 :], range(2), strict=False):
            one, i, wi, other, j, wj = terms
            left = tensors[one][layer_names(6)[2 * i + here]].double()
            right = tensors[other][layer_names(6)[2 * j + here]].double()
            expected = (wi * left + wj * right) / (wi + wj)
            assert torch.equal(found[name], expected.to(torch.bfloat16))


def test_slices_with_more_and_fewer_sources_go_together(
    models: Path, tensors: dict[str, Tensors], tmp_path: Path
) -> None:
    text = """
    merge_method: linear
    slices:
      - sources: [{model: a, layer_range: [0, 1]}]
      - sources: [{model: b, layer_range: [0, 1]}, {model: c, layer_range: [0, 1]}]
    """
    found = read_checkpoint(merge(models, tmp_path, text))
    first, second = layer_names(2)[0], layer_names(2)[2]
    assert torch.equal(found[first], tensors["a"][first])
    expected = (tensors["b"][first].double() + tensors["c"][first].double()) / 2
    assert torch.equal(found[second], expected.to(torch.bfloat16))


def test_verify_computes_a_frankenmerge_again(models: Path, tmp_path: Path) -> None:
    out = merge(models, tmp_path, FRANKENMERGE)
    assert not streammerge.verify(out, recompute="all").findings


def test_transformers_loads_a_frankenmerge(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        tiny_llama(tmp_path / name, seed, tied=False)
    layers = (("a", [0, 2]), ("b", [0, 2]), ("a", [1, 2]))
    slices = "\n".join(
        f"  - sources: [{{model: {model}, layer_range: {span}}}]" for model, span in layers
    )
    out = merge(tmp_path, tmp_path, f"merge_method: linear\nslices:\n{slices}\n")
    done = streammerge.verify(out, load=True)
    assert not done.findings
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 5


ranges = st.integers(0, 5).flatmap(lambda i: st.tuples(st.just(i), st.integers(i + 1, 6)))
parts = st.tuples(st.sampled_from("abc"), ranges)


@settings(max_examples=25)
@given(st.lists(parts, min_size=1, max_size=5))
def test_any_stack_shows_the_bytes_of_its_parts(
    models: Path,
    tmp_path_factory: pytest.TempPathFactory,
    slices: list[tuple[str, tuple[int, int]]],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    rows = "\n".join(
        f"  - sources: [{{model: {models}/{model}, layer_range: [{begin}, {end}]}}]"
        for model, (begin, end) in slices
    )
    recipe = read(folder, f"merge_method: linear\nslices:\n{rows}\n")
    opened: dict[str, Checkpoint] = {r: open_checkpoint(r) for r in recipe.references}
    (stack,) = open_inputs(recipe, opened.__getitem__)
    origins = [(model, i) for model, span in slices for i in range(*span)]
    assert sum(name.startswith("model.layers.") for name in stack.tensors) == 2 * len(origins)
    for layer, (model, old) in enumerate(origins):
        checkpoint = opened[f"{models}/{model}"]
        here, there = layer_names(layer + 1)[-1], layer_names(old + 1)[-1]
        location, original = stack.locate(here), checkpoint.locate(there)
        assert stack.tensors[here].shape == checkpoint.tensors[there].shape
        reader = stack.open(location.file)
        view = bytes(reader.fetch(location.offset, 32, memoryview(bytearray(64))))
        theirs = checkpoint.open(original.file)
        assert view == bytes(theirs.fetch(original.offset, 32, memoryview(bytearray(64))))
        reader.close()
        theirs.close()
        assert location.file in stack.identity()


MODULES = """
merge_method: linear
modules:
  vision:
    models: [{model: a}, {model: b, parameters: {weight: 3}}]
  default:
    slices:
      - sources: [{model: a, layer_range: [1, 2]}]
      - sources: [{model: b, layer_range: [0, 1]}]
"""


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers")
    names = [*layer_names(2, "vision.blocks"), *llama_names(2)]
    config = {
        "dtype": "bfloat16",
        "text_config": {"num_hidden_layers": 2},
        "vision_config": {"depth": 2},
    }
    for seed, name in enumerate("ab"):
        write_named(folder / name, names, seed, config)
    return folder


def test_modules_are_merged_each_in_its_way(towers: Path, tmp_path: Path) -> None:
    given = {name: read_checkpoint(towers / name) for name in "ab"}
    out = merge(towers, tmp_path, MODULES.replace("[0, 1]", "[0, 2]"))
    found = read_checkpoint(out)
    name = "vision.blocks.1.mlp.up_proj.weight"
    expected = (given["a"][name].double() + 3 * given["b"][name].double()) / 4
    assert torch.equal(found[name], expected.to(torch.bfloat16))
    assert torch.equal(found[layer_names(1)[0]], given["a"][layer_names(2)[2]])
    assert torch.equal(found[layer_names(2)[2]], given["b"][layer_names(1)[0]])
    config = json.loads((out / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
    assert config["vision_config"]["depth"] == 2


@pytest.mark.parametrize(
    ("text", "error", "pattern"),
    [
        (FRANKENMERGE.replace("[2, 6]", "[2, 7]"), RecipeError, r"line 5: .*b\[2:7\] .* 6 layers"),
        (FRANKENMERGE.replace("[5, 6]", "[9, 10]"), RecipeError, "line 6"),
        (FRANKENMERGE + 'layers: "nothing.*"\n', RecipeError, "nothing to slice"),
    ],
)
def test_layers_that_are_not_there(
    models: Path, tmp_path: Path, text: str, error: type[StreammergeError], pattern: str
) -> None:
    with pytest.raises(error, match=pattern):
        merge(models, tmp_path, text)


def test_two_stacks_of_layers_need_a_word(towers: Path, tmp_path: Path) -> None:
    text = "merge_method: linear\nslices:\n  - sources: [{model: a, layer_range: [0, 1]}]\n"
    with pytest.raises(RecipeError, match=r"several stacks.*\n.*model\.layers\.\* \(2\)"):
        merge(towers, tmp_path, text)
    found = read_checkpoint(merge(towers, tmp_path, text + 'layers: "model.layers.*"\n'))
    assert sum(name.startswith("model.layers.") for name in found) == 2
    assert sum(name.startswith("vision.blocks.") for name in found) == 4


def test_what_no_module_holds_is_not_lost_without_a_word(towers: Path, tmp_path: Path) -> None:
    text = MODULES.partition("  default:")[0]
    with pytest.raises(CoverageError, match="7 tensors belong to no module"):
        merge(towers, tmp_path, text)
    found = read_checkpoint(merge(towers, tmp_path, text + 'skip: ["model.*", "lm_head.*"]'))
    assert len(found) == 4
    unknown = MODULES.replace("vision:", "vision_tower:")
    with pytest.raises(CoverageError, match=r"line 4: no tensor belongs to .* vision_tower"):
        merge(towers, tmp_path, unknown)
