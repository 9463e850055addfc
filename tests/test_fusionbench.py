"""FusionBench's names: what it calls a setting means the same here, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge as sm
from streammerge.errors import RecipeError
from streammerge.methods import METHODS
from streammerge.methods.fusionbench import ELSEWHERE, WORDS
from tests.support.checkpoints import Tensors, rng, write_checkpoint
from tests.support.merging import refusal
from tests.support.recipes import read

SIZE = 1000
DOCS = Path(__file__).parents[1] / "docs" / "methods.md"


def pool(models: int = 3) -> dict[str, Tensors]:
    """Models of one tensor, so that a part of the tensor is a part of the model."""
    base = torch.randn(SIZE, generator=rng(0), dtype=torch.float64)
    steps = [torch.randn(SIZE, generator=rng(1 + n), dtype=torch.float64) for n in range(models)]
    tuned = {f"m{n}": {"w": base + step / 10} for n, step in enumerate(steps)}
    return {"_pretrained_": {"w": base}, **tuned}


def merged(name: str, models: dict[str, Tensors], **settings: Any) -> torch.Tensor:
    return sm.merge_modules(models, name, **settings)["w"]


def deltas(models: dict[str, Tensors]) -> torch.Tensor:
    base, *tuned = (tensors["w"] for tensors in models.values())
    return torch.stack(tuned) - base


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["ties_merging", "linear/ties_merging_for_causallm"])
@pytest.mark.parametrize("function", ["sum", "mean", None])
@pytest.mark.parametrize("threshold", [20, 12.5, 0.2, 100])
def test_ties_keeps_a_percentage_and_sums_or_averages(
    name: str, function: str | None, threshold: float
) -> None:
    models, settings = pool(), {"merge_func": function} if function else {}
    found = merged(name, models, threshold=threshold, scaling_factor=0.3, **settings)
    change = deltas(models)
    kept = int(SIZE * (threshold / 100 if threshold > 1 else threshold))
    limit = change.abs().sort(descending=True).values[:, kept - 1 : kept]
    change = change * (change.abs() >= limit)
    sign = change.sum(0).sign()
    agreeing = change * (change.sign() == sign)
    total, count = agreeing.sum(0), (agreeing != 0).sum(0).clamp(min=1)
    expected = total / count if function == "mean" else total
    close(found, models["_pretrained_"]["w"] + 0.3 * expected)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["dare/task_arithmetic", "dare/simple_average"])
def test_dare_drops_the_share_that_is_to_become_sparse(name: str, rescale: bool) -> None:
    models = pool()
    average = name == "dare/simple_average"
    settings = {} if average else {"scaling_factor": 0.3}
    found = merged(
        name, models, sparsity_ratio=0.9, rescale=rescale, only_on_linear_weights=False, **settings
    )
    base, change = models["_pretrained_"]["w"], deltas(models)
    # The random numbers are ours: what stayed of each model is read off when it is merged alone.
    own = merged("dare_linear", models, density=0.1, rescale=rescale, **settings)
    if average:
        own = base + (own - base) / len(change)
    close(found, own)
    one = {"_pretrained_": models["_pretrained_"], "m0": models["m0"]}
    alone = merged(name, one, sparsity_ratio=0.9, rescale=rescale, **settings) - base
    stayed = alone != 0
    assert 0.05 < stayed.double().mean() < 0.15
    factor = settings.get("scaling_factor", 1) * (10 if rescale else 1)
    torch.testing.assert_close(alone, change[0] * stayed * factor, rtol=1e-9, atol=1e-12)


def test_sparsity_may_differ_between_models() -> None:
    models = pool(2)
    found = merged("dare/task_arithmetic", models, sparsity_ratio={"m0": 1.0, "m1": 0.0})
    close(found, models["m1"]["w"])


@pytest.mark.parametrize("t", [0, 0.3, 1])
def test_interpolation_goes_from_the_first_model_to_the_second(t: float) -> None:
    models = pool(2)
    models.pop("_pretrained_")
    a, b = (tensors["w"] for tensors in models.values())
    close(merged("linear/linear_interpolation", models, t=t), (1 - t) * a + t * b)


def test_slerp_has_their_limits_and_no_others() -> None:
    models = pool(1)
    own = merged("slerp", models, t=0.3)
    settings = {"t": 0.3, "DOT_THRESHOLD": 0.9995, "epsilon": 1e-8}
    assert torch.equal(merged("slerp/slerp", models, **settings), own)
    refusal(lambda: merged("slerp/slerp", models, t=0.3, DOT_THRESHOLD=0.99), "DOT_THRESHOLD")


def test_two_models_have_one_angle() -> None:
    models = pool(2)
    name = "model_stock/model_stock"
    assert torch.equal(merged(name, models), merged("model_stock", models))
    refusal(lambda: merged(name, pool(3)), "3 models", "angles")


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "percentage": ("ties_merging", {"threshold": 120}, "threshold"),
    "one": ("ties_merging", {"threshold": 1}, "percentage"),
    "maximum": ("ties_merging", {"threshold": 20, "merge_func": "max"}, "merge_func"),
    "twice": ("ties_merging", {"threshold": 20, "density": 0.2}, "density"),
    "keys": ("ties_merging", {"remove_keys": "lm_head.weight"}, "remove_keys"),
    "linear": ("dare/simple_average", {"only_on_linear_weights": True}, "only_on_linear_weights"),
    "sparsity": ("dare/task_arithmetic", {"sparsity_ratio": 1.5}, "sparsity_ratio"),
    "backbone": ("linear/simple_average_for_causallm", {"merge_backbone": True}, "merge_backbone"),
    "weights": ("weighted_average", {"weights": [1, 2, 3]}, "weights"),
    "path": ("linear/task_arithmetic_for_llama", {"model_save_path": "x"}, "model_save_path"),
    "three": ("linear/linear_interpolation", {"t": 0.5}, "2 models"),
    "no t": ("linear/linear_interpolation", {}, "needs t"),
    "alphas": (
        "task_singular_vector/TaskSingularVectorMerging",
        {"alpha": [1, 0.5, 0.25]},
        "gradient",
    ),
    "ours": ("ties", {"threshold": 20}, "threshold"),
}


def write_pool(folder: Path) -> None:
    """A base and two models as checkpoints of one tensor."""
    for name, tensors in pool(2).items():
        write_checkpoint(folder / name, {"w": tensors["w"]})


@pytest.mark.parametrize(("name", "settings", "word"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(
    name: str, settings: dict[str, Any], word: str
) -> None:
    models = pool()
    if METHODS.get(name).base == "none":
        models.pop("_pretrained_")
    refusal(lambda: merged(name, models, **settings), word)


def test_a_list_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    write_pool(tmp_path)
    text = f"""
        merge_method: task_arithmetic
        base_model: {tmp_path}/_pretrained_
        models: ["{tmp_path}/m0", "{tmp_path}/m1"]
        rules:
          - tensors: w
            method: task_singular_vector/TaskSingularVectorMerging
            parameters: {{alpha: [1, 0.5]}}
        """
    refusal(lambda: sm.plan_merge(read(tmp_path, text), tmp_path / "out"), "gradient")


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_method_that_is_another_one_is_refused_and_told(name: str) -> None:
    assert name not in METHODS
    refusal(lambda: merged(name, pool()), name, ELSEWHERE[name])


def test_a_recipe_says_it_with_file_and_line_and_what_differs(tmp_path: Path) -> None:
    write_pool(tmp_path)
    text = f"""
        name: ties_merging
        base_model: {tmp_path}/_pretrained_
        models: ["{tmp_path}/m0", "{tmp_path}/m1"]
        parameters:
          scaling_factor: 0.3
          threshold: 20
          merge_func: sum
        """
    plan = sm.plan_merge(read(tmp_path, text), tmp_path / "out")
    assert dict(plan.steps[0].parameters)["density"] == (0.2, 0.2)
    assert any("whole model" in note for note in plan.notes)
    wrong = read(tmp_path, text.replace("threshold: 20", "threshold: 200"))
    with pytest.raises(RecipeError, match=r"recipe\.yml, line 7: threshold is 200"):
        sm.plan_merge(wrong, tmp_path / "out")


def test_every_name_is_an_alias_and_in_the_docs() -> None:
    table = DOCS.read_text().partition("FusionBench")[2]
    for name in WORDS:
        assert name in METHODS
    for name in (*WORDS, *ELSEWHERE):
        assert f"`{name}`" in table, name
