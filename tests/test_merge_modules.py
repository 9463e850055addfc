"""Any method on models in memory: its formula, its parameters, the base model, the same bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import streammerge as sm
from streammerge.inmemory.recipes import make_recipe
from streammerge.methods import METHODS
from tests.support.checkpoints import Tensors, like, random_tensors, read_checkpoint
from tests.support.merging import assert_same_bits, refusal, write_all

DTYPES = (torch.bfloat16, torch.float32)
Models = dict[str, Tensors]


def pool(dtypes: tuple[torch.dtype, ...] = DTYPES) -> Models:
    base = random_tensors(1, dtypes)
    return {"_pretrained_": base, "a": like(base, 2, 1.0), "b": like(base, 3, 1.0)}


def pool_for(method: str) -> Models:
    """As many models as the method takes, up to two, and a base model if it wants one."""
    models, (least, most) = pool(), METHODS.get(method).models
    base = {"_pretrained_": models.pop("_pretrained_")}
    models = dict(list(models.items())[: max(least, min(2, most or 2))])
    return models if METHODS.get(method).base == "none" else base | models


def on_disk(folder: Path, models: Models, method: str, parameters: dict[str, Any]) -> Tensors:
    """The same recipe with the models as files."""
    paths = dict(zip(models, map(str, write_all(folder, list(models.values()))), strict=True))
    base, out = paths.pop("_pretrained_", None), folder / "out"
    sm.merge(make_recipe(list(paths.values()), base, method, parameters), out)
    return read_checkpoint(out)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_gives_the_bits_that_it_gives_for_files(tmp_path: Path, method: str) -> None:
    models = pool_for(method)
    needed = {p.name: 0.3 for p in METHODS.get(method).parameters.values() if p.required}
    before = copy.deepcopy(models)
    assert_same_bits(
        sm.merge_modules(models, method, **needed), on_disk(tmp_path, models, method, needed)
    )
    for name, tensors in before.items():
        assert_same_bits(models[name], tensors)


def test_task_arithmetic_follows_its_formula() -> None:
    models = pool((torch.float64,))
    merged = sm.merge_modules(
        models, method="task_arithmetic", scaling_factor=0.3, weight={"a": 1.0, "b": 0.5}
    )
    base, a, b = models.values()
    for name, tensor in merged.items():
        expected = base[name] + 0.3 * ((a[name] - base[name]) + 0.5 * (b[name] - base[name]))
        torch.testing.assert_close(tensor, expected, rtol=1e-14, atol=1e-16)


def modules() -> dict[str, nn.Module]:
    return {name: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for name in ("p", "a", "b")}


def test_the_base_model_is_named_or_given_and_the_result_is_like_it() -> None:
    given = modules()
    base = given.pop("p").eval()
    base[0].bias.requires_grad_(False)
    named = sm.merge_modules({"_pretrained_": base, **given}, "task_arithmetic")
    behind = sm.merge_modules({**given, "_pretrained_": base}, "task_arithmetic")
    apart = sm.merge_modules(given, "task_arithmetic", base=base)
    for merged in (named, behind, apart):
        assert (merged.training, merged[0].bias.requires_grad) == (False, False)
        for name, tensor in named.state_dict().items():
            assert torch.equal(merged.state_dict()[name], tensor)
    assert given["a"].training


def test_an_average_leaves_the_base_model_out() -> None:
    models = pool()
    merged = sm.merge_modules(models, "simple_average")
    expected = sm.average([models["a"], models["b"]])
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    models = [{"w": torch.randn(50)} for _ in range(2)]
    expected = sm.average(models, weights=[0.25, 0.75])["w"]
    for weights in (np.array([0.25, 0.75], np.float32), torch.tensor([0.25, 0.75])):
        assert torch.equal(sm.average(models, weights=weights)["w"], expected)


@pytest.mark.parametrize("values", [[0.0, 1.0], np.array([0.0, 1.0]), torch.tensor([0.0, 1.0])])
def test_a_list_is_a_gradient_over_the_layers(values: Any) -> None:
    names = [f"layers.{layer}.w" for layer in range(3)]
    models = {
        "_pretrained_": {name: torch.zeros(4) for name in names},
        "a": {name: torch.ones(4) for name in names},
    }
    merged = sm.merge_modules(models, "task_arithmetic", scaling_factor=values)
    assert [merged[name][0].item() for name in names] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("change", "method", "parameters", "patterns"),
    [
        ({}, "task_aritmetic", {}, ["task_aritmetic", "did you mean 'task_arithmetic'"]),
        ({}, "task_arithmetic", {"scaling": 1}, ["no parameter 'scaling'", "scaling_factor"]),
        ({}, "task_arithmetic", {"scaling_factor": "much"}, ["scaling_factor", "much"]),
        ({}, "task_arithmetic", {"scaling_factor": []}, ["scaling_factor is", "finite number"]),
        ({}, "task_arithmetic", {"scaling_factor": float("nan")}, ["scaling_factor is nan"]),
        ({}, "task_arithmetic", {"scaling_factor": None}, ["scaling_factor is None"]),
        ({}, "ties", {"density": 1.5}, ["density", "1.5"]),
        ({}, "ties", {"density": {"a": 0.5}}, ["density is given for 'a'", "a, b"]),
        ({}, "ties", {"density": {"a": 0.5, "c": 1}}, ["density", "'c'"]),
        ({}, "task_arithmetic", {"scaling_factor": {"a": 1, "b": 2}}, ["scaling_factor", "one"]),
        ({"_pretrained_": None}, "ties", {}, ["base model", "_pretrained_", "base="]),
        ({"a": None, "b": None}, "ties", {}, ["mapping from names"]),
        ({}, "task_arithmetic", {"base": {"w": torch.ones(2)}}, ["two base models"]),
    ],
)
def test_calls_that_make_no_sense_are_refused(
    change: dict[str, None], method: str, parameters: dict[str, Any], patterns: list[str]
) -> None:
    models = {
        name: {"w": torch.ones(2)} for name in ("_pretrained_", "a", "b") if name not in change
    }
    message = refusal(lambda: sm.merge_modules(models, method, **parameters), *patterns)
    assert "base_model:" not in message


def test_a_list_is_not_a_mapping() -> None:
    models: Any = [{"w": torch.ones(2)}]
    refusal(lambda: sm.merge_modules(models, "average"), "mapping from names")


def test_errors_name_the_models_as_they_were_named() -> None:
    models = {"_pretrained_": {"w": torch.ones(2)}, "chat": {"w": torch.ones(3)}}
    refusal(lambda: sm.merge_modules(models, "task_arithmetic"), "_pretrained_", "chat")
    models["chat"] = {"w": torch.tensor([1, float("inf")])}
    refusal(lambda: sm.merge_modules(models, "task_arithmetic"), "w in chat holds NaN or Inf")
