"""Each method against its paper's formula in float64: correct rounding, but for the odd element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from streammerge.methods import METHODS
from streammerge.methods.parameters import resolve
from streammerge.methods.place import Place
from streammerge.methods.workspace import Workspace
from tests.support.checkpoints import rng
from tests.support.formulas import FORMULAS, Call
from tests.support.methods import run_method
from tests.support.reference import round_once, ulps_apart

Each = list[dict[str, Any]]
SHAPE = (300, 210)
NAME = "layers.3.weight"
WEIGHTS: Each = [{"weight": w} for w in (0.6, 0.3, 0.45)]

CASES: list[tuple[str, int, dict[str, Any], Each | None]] = [
    ("task_arithmetic", 2, {"lambda": 0.3}, WEIGHTS),
    ("task_arithmetic", 3, {"normalize": True, "scaling_factor": 1.2}, WEIGHTS),
    ("task_arithmetic", 1, {}, None),
    ("expo", 1, {"alpha": 0.3}, None),
    ("magmax", 3, {"lambda": 0.5}, None),
    ("ties", 2, {"density": 0.2}, None),
    ("ties", 3, {"density": 0.37, "lambda": 0.7}, WEIGHTS),
    ("ties", 3, {"density": 0.5, "majority_sign_method": "frequency"}, WEIGHTS),
    ("ties", 2, {"density": 0.5, "normalize": False, "rescale": True}, WEIGHTS),
    ("ties", 3, {"density": 0.5}, [{"weight": w} for w in (0.5, -0.25, 1)]),
    ("ties", 1, {"density": 1e-9}, None),
    ("dare_linear", 2, {"density": 0.3}, WEIGHTS),
    ("dare_linear", 2, {"density": 0.3, "rescale_by": "l1", "seed": 5}, WEIGHTS),
    ("dare_linear", 2, {"density": 0.3, "rescale": False, "normalize": True}, WEIGHTS),
    ("dare_ties", 3, {"density": 0.53}, WEIGHTS),
    ("dare_ties", 2, {"density": 0.53, "rescale_by": "l1", "normalize": True}, WEIGHTS),
    ("della", 2, {"density": 0.5}, WEIGHTS),
    ("della", 3, {"density": 0.7, "epsilon": 0.1, "rescale_by": "l1", "lambda": 1.1}, WEIGHTS),
    ("della_linear", 2, {"density": 0.4, "epsilon": 0.3}, WEIGHTS),
    ("della_linear", 2, {"density": 0.4, "rescale": False}, WEIGHTS),
    ("breadcrumbs", 2, {"density": 0.6, "gamma": 0.05}, WEIGHTS),
    ("breadcrumbs", 2, {"density": 0.95, "gamma": 0.2, "rescale": True}, WEIGHTS),
    ("breadcrumbs_ties", 3, {"density": 0.6, "gamma": 0.05, "normalize": True}, WEIGHTS),
    ("sce", 3, {}, None),
    ("sce", 3, {"select_topk": 0.3}, None),
    ("sce", 1, {"select_topk": 0.3}, None),
    ("ram", 3, {"epsilon": 1e-3}, None),
    ("ramplus_tl", 3, {"epsilon": 3e-3, "r": 0.5, "alpha": 0.8}, None),
    ("nearswap", 1, {"t": 1e-3}, None),
    ("arcee_fusion", 1, {}, None),
    ("passthrough", 1, {}, [{"scale": 0.7}]),
    ("passthrough", 1, {}, None),
]


def inputs(models: int, shape: tuple[int, ...] = SHAPE) -> tuple[list[Tensor], Tensor]:
    """Fine-tunes of one bf16 model: some rows hardly changed, some elements not at all."""
    base = (torch.randn(shape, generator=rng(1)) / 50).bfloat16()
    row = torch.rand((shape[0], *[1] * (len(shape) - 1)), generator=rng(2)) / 250
    steps = [torch.randn(shape, generator=rng(10 + i)) * row for i in range(models)]
    return [(base + step).bfloat16() for step in steps], base


def parameters(name: str, models: int, settings: Mapping[str, Any], each: Each | None) -> Any:
    found = METHODS.get(name).parameters
    return dict(resolve(name, found, settings, (each or [{}] * models)[:models]))


@pytest.mark.parametrize(("name", "models", "settings", "each"), CASES, ids=str)
def test_bf16_results_are_the_formula_rounded_once(
    name: str, models: int, settings: dict[str, Any], each: Each | None
) -> None:
    tensors, base = inputs(models)
    has_base = METHODS.get(name).base != "none"
    merged = run_method(
        name,
        tensors,
        base if has_base else None,
        settings,
        each[:models] if each else None,
        tensor_name=NAME,
        stretch=20_000,
    )
    wide, seed = base.double(), settings.get("seed", 0)
    place = Place(NAME, SHAPE, 0, base.numel())
    call = Call(
        [tensor.double() for tensor in tensors],
        wide,
        lambda model: place.uniform(seed, model, wide),
        parameters(name, models, settings, each),
    )
    expected, doubt = FORMULAS[name](call)
    # Where terms cancel, what is left has the rounding of the terms, not of itself. Such elements
    # are computed again in fp64, but not with random numbers: those belong to whole blocks.
    scale = torch.stack([t.double().abs() for t in (*tensors, base)]).amax(0)
    cancelled = expected.abs() < scale * 2**-12
    assert doubt.double().mean() < 0.03, "too much of this case says nothing"
    assert cancelled.double().mean() < 0.01
    rounded = round_once(expected.numpy().reshape(-1), torch.bfloat16).view(SHAPE)
    clear = ~doubt
    wrong = (merged != rounded) & clear
    assert int(wrong.sum()) <= 0.001 * int(clear.sum()), f"{int(wrong.sum())} elements are wrong"
    if "place" in METHODS.get(name).sees:
        clear &= ~cancelled
    assert ulps_apart(merged[clear], rounded[clear]) <= 1


def test_every_method_has_a_formula() -> None:
    """The methods of other families have suites of their own."""
    assert set(FORMULAS) <= set(METHODS)
    assert {name for name, *_ in CASES} == set(FORMULAS)


def test_an_even_vote_elects_the_positive_sign() -> None:
    base = torch.zeros(4)
    tensors = [torch.tensor([1.0, -2.0, 3.0, 0.0]), torch.tensor([-1.0, 2.0, 1.0, 0.0])]
    for settings in ({}, {"majority_sign_method": "frequency"}):
        assert run_method("ties", tensors, base, settings).tolist() == [1, 2, 2, 0]


def test_an_even_vote_is_even_whatever_the_weights() -> None:
    """As fp32 numbers, 0.6 · −3 and 0.45 · 4 are not quite opposite."""
    tensors = [torch.full((1,), -3.0), torch.full((1,), 4.0)]
    each = [{"weight": 0.6}, {"weight": 0.45}]
    for scale in (2.0**-20, 1.0, 5.0, 7.0):
        scaled = [tensor * scale for tensor in tensors]
        assert run_method("ties", scaled, torch.zeros(1), {}, each).tolist() == [4 * scale]


def test_all_that_equals_the_threshold_stays() -> None:
    """As in the TIES authors' code; mergekit keeps as many as asked for, of equal ones any."""
    tensors = [torch.tensor([1.0, -1.0, 1.0, 0.5, 2.0])]
    merged = run_method("ties", tensors, torch.zeros(5), {"density": 0.4})
    assert merged.tolist() == [1, -1, 1, 0, 2]


def test_density_is_of_the_whole_tensor_and_keeps_at_least_one() -> None:
    tensors = [torch.arange(1.0, 11.0)]
    for density, kept in ((0.0, 0), (1e-6, 1), (0.29, 2), (0.3, 3), (1.0, 10)):
        merged = run_method("ties", tensors, torch.zeros(10), {"density": density})
        assert int(merged.count_nonzero()) == kept, density
    for density, kept in ((0.0, 0), (0.05, 0), (0.3, 3), (1.0, 10)):
        settings = {"density": density, "gamma": 0.1}
        merged = run_method("breadcrumbs", tensors, torch.zeros(10), settings)
        assert int(merged.count_nonzero()) == kept, density


@pytest.mark.parametrize("name", ["task_arithmetic", "ties"])
def test_without_any_model_of_weight_the_base_model_is_left(name: str) -> None:
    base = torch.ones(3)
    method = METHODS.get(name)
    settings = parameters(name, 0, {}, [])
    out = torch.empty(3)
    available = {"tensors": [], "base": base, "measured": None, "place": Place("", (3,), 0, 3)}
    available |= {"out": out, "workspace": Workspace()}
    merged = method.function(**method.arguments(available), **settings)
    assert (out if method.kernel else merged).equal(base)


def test_density_and_epsilon_of_della_must_leave_probabilities() -> None:
    from streammerge.errors import RecipeError

    tensors, base = inputs(1, (4, 4))
    for density, epsilon in ((0.1, 0.15), (0.9, 0.15), (0.5, 0.5)):
        with pytest.raises(RecipeError):
            run_method("della", tensors, base, {"density": density, "epsilon": epsilon})
    for density in (0.0, 1.0):  # nothing is left to chance
        run_method("della", tensors, base, {"density": density})
