"""mergekit 0.1.5 in float32 as an oracle: what it gives, we give; and where not, why not.

mergekit is run in its own environment, `.venv-mergekit` (`make test` makes it), in one process for
all cases: its functions on single tensors, and its real program, `mergekit-yaml`, on tiny models.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streammerge.methods import METHODS
from tests.support.checkpoints import rng, tiny_llama
from tests.support.formulas import FORMULAS, Call
from tests.support.methods import run_method
from tests.support.reference import ulps_apart

REPOSITORY = Path(__file__).parent.parent
PYTHON = REPOSITORY / ".venv-mergekit" / "bin" / "python"
pytestmark = [
    pytest.mark.skipif(not PYTHON.exists(), reason="mergekit is not installed in .venv-mergekit"),
    pytest.mark.timeout(600),
]

SHAPE = (120, 250)
Settings = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One merge that both do.

    Attributes:
        method: the name that both know.
        models: how many, without the base model.
        settings: parameters for all models.
        each: parameters with a value for each model.
        base: with a base model.
        spread: standard deviation of the changes to the base model.
    """

    method: str
    models: int
    settings: Settings = field(default_factory=dict)
    each: dict[str, list[float]] = field(default_factory=dict)
    base: bool = True
    spread: float = 2e-3

    def __str__(self) -> str:
        base = "base" if self.base else "alone"
        return f"{self.method}-{self.models}-{base}-{self.spread}-{self.settings | self.each}"

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """The models, then the base model."""
        base = torch.randn(SHAPE, generator=rng(1)) / 50
        row = torch.rand((SHAPE[0], 1), generator=rng(2)) * 2 * self.spread
        steps = [torch.randn(SHAPE, generator=rng(10 + i)) * row for i in range(self.models)]
        return [tensor.to(dtype) for tensor in (*(base + step for step in steps), base)]

    def ours(self, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
        """The merge by streammerge; inputs in float32 are summed in float64, as in a real merge."""
        *tensors, base = self.inputs(dtype)
        compute = "F32" if dtype == torch.bfloat16 else "F64"
        return run_method(
            self.method,
            tensors,
            base if self.base else None,
            self.settings,
            self.settings_of_each,
            **{"compute": compute, "out_dtype": torch.bfloat16} | options,
        )

    @property
    def settings_of_each(self) -> list[Settings]:
        return [{k: v[i] for k, v in self.each.items()} for i in range(self.models)]

    def job(self, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The same merge for mergekit, and its inputs."""
        names = [f"{self.spread}-{dtype}-{i}" for i in range(self.models)] + [f"{dtype}-base"]
        inputs = dict(zip(names, self.inputs(dtype), strict=True))
        used = names if self.base else names[:-1]
        what = {"name": f"{self} {dtype}", "method": self.method, "tensors": used}
        base = self.models if self.base else None
        return {**what, "parameters": {**self.settings, **self.each}, "base": base}, inputs

    def recipe(self, models: Sequence[Path], base: Path) -> dict[str, Any]:
        """The same merge as a recipe of mergekit's."""
        each = [
            {"model": str(model), "parameters": settings}
            for model, settings in zip(models, self.settings_of_each, strict=False)
        ]
        recipe = {"merge_method": self.method, "models": each, "parameters": self.settings}
        dtypes = {"dtype": "float32", "out_dtype": "bfloat16"}
        return {**recipe, **dtypes} | ({"base_model": str(base)} if self.base else {})


def unequal(models: int) -> dict[str, list[float]]:
    """Weights that differ.

    In no simple proportion: else votes of bf16 models can be even, as with 4 : 3 for −3 and 4,
    which we see, but mergekit does not: its products with 0.6 and 0.45 are rounded.
    """
    return {"weight": [0.61237, 0.37199, 0.45763][:models]}


EQUAL: list[Case] = [
    Case("linear", 3, {}, unequal(3), base=False),
    Case("linear", 2, {"normalize": False}, unequal(2), base=False),
    Case("slerp", 1, {"t": 0.3}),
    Case("nuslerp", 2, {}, unequal(2)),
    Case("nuslerp", 2, {}, unequal(2), base=False),
    Case("multislerp", 3, {}, unequal(3)),
    Case("multislerp", 3, {}, unequal(3), base=False),
    Case("karcher", 3, {}, base=False),
    Case("model_stock", 3, {}),
    Case("model_stock", 2, {"filter_wise": True}),
    Case("task_arithmetic", 2, {"lambda": 0.7}, unequal(2)),
    Case("task_arithmetic", 3, {"normalize": True, "int8_mask": True}, unequal(3)),
    Case("ties", 2, {"density": 0.2}, {"weight": [1.0, 1.0]}),
    Case("ties", 3, {"density": 0.5, "lambda": 1.3}, unequal(3)),
    Case("ties", 3, {"normalize": False}, {**unequal(3), "density": [0.2, 0.0, 1.0]}),
    Case("ties", 2, {"density": 0.4, "rescale": True, "int8_mask": True}, unequal(2)),
    Case("ties", 2, {"density": 0.4}, {"weight": [0.5, -0.25]}),
    Case("dare_linear", 2, {}, unequal(2)),
    Case("dare_ties", 3, {"normalize": True}, unequal(3)),
    Case("dare_ties", 3, {"rescale": False}, unequal(3)),
    Case("della", 3, {}, unequal(3)),
    Case("della", 2, {}, {**unequal(2), "density": [0.0, 1.0]}),
    Case("della_linear", 2, {"lambda": 0.5}, unequal(2)),
    Case("breadcrumbs", 2, {"density": 0.6, "gamma": 0.05}, unequal(2)),
    Case("breadcrumbs", 2, {"density": 0.95, "gamma": 0.2, "rescale": True}, unequal(2)),
    Case("breadcrumbs_ties", 3, {"density": 0.5}, unequal(3)),
    Case("sce", 3, {}),
    Case("sce", 3, {"select_topk": 0.3}),
    Case("ram", 3, {"epsilon": 1e-3}),
    Case("ramplus_tl", 3, {"epsilon": 2e-3, "r": 0.5, "alpha": 0.8}),
    Case("nearswap", 1, {"t": 1e-3}),
    # In float32 the divergence of rows that are nearly equal is noise, so these are far apart.
    Case("arcee_fusion", 1, {}, spread=0.5),
    Case("passthrough", 1, {}, {"scale": [0.7]}, base=False),
    Case("passthrough", 1, {}, base=False),
]
"""Merges that give the same; random methods where nothing is left to chance."""

SMALL_CHANGES = Case("sce", 3, {}, spread=2e-4)
SMALL_STEP = Case("nearswap", 1, {"t": 1e-8}, spread=1e-7)
NEARLY_EQUAL_ROWS = Case("arcee_fusion", 1, {}, spread=1e-5)
EQUAL_MAGNITUDES = Case("ties", 1, {"density": 0.2, "weight": 1.0})
DARE = Case("dare_linear", 1, {"density": 0.3, "weight": 1.0})
DELLA = Case("della_linear", 1, {"density": 0.4, "epsilon": 0.3, "weight": 1.0})

ALIKE = [case for case in EQUAL if case.method in {*METHODS, "linear"}]
# Changes of bf16 models are full of equal ones; mergekit keeps as many as asked for, any of them.
# filter_wise: t divides by 1 + cos Ω, and in a short row the changes of bf16 models may cancel:
# there mergekit's cosine in fp32 has no digits left; ours is taken in fp64.
NOT_HALF = {"density", "select_topk", "filter_wise"}
HALF = [c for c in ALIKE if not NOT_HALF & {*c.settings, *c.each}]
OTHERS = [SMALL_CHANGES, SMALL_STEP, NEARLY_EQUAL_ROWS, DARE, DELLA]
RECIPES = list({case.method: case for case in ALIKE}.values())
Find = Callable[..., Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything lies that mergekit was given, and what it gave."""
    folder = tmp_path_factory.mktemp("mergekit")
    jobs = [case.job() for case in (*ALIKE, *OTHERS)]
    jobs += [case.job(torch.bfloat16) for case in (*HALF, EQUAL_MAGNITUDES)]
    save_file(
        {k: v for _, inputs in jobs for k, v in inputs.items()}, folder / "inputs.safetensors"
    )
    recipes = []
    models = tiny_models(folder)
    for case in RECIPES:
        recipe = folder / f"{case.method}.yml"  # JSON is YAML
        recipe.write_text(json.dumps(case.recipe(models[:-1], models[-1])))
        recipes.append((str(recipe), str(folder / f"merged-{case.method}")))
    everything = {"tensors": [job for job, _ in jobs], "recipes": recipes}
    (folder / "jobs.json").write_text(json.dumps(everything))
    script = REPOSITORY / "tests" / "support" / "run_mergekit.py"
    done = subprocess.run([PYTHON, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def tiny_models(folder: Path) -> list[Path]:
    """Three models far from a tiny Llama (see `arcee_fusion` above), in float32; then the Llama."""
    base = tiny_llama(folder / "base", seed=1, tied=False, dtype=torch.float32)
    tensors = load_file(base / "model.safetensors")
    models = []
    for number in range(3):
        model = folder / f"model-{number}"
        model.mkdir()
        (model / "config.json").write_bytes((base / "config.json").read_bytes())
        tuned = {
            name: tensor + torch.randn(tensor.shape, generator=rng(100 * number + i)) / 2
            for i, (name, tensor) in enumerate(tensors.items())
        }
        save_file(tuned, model / "model.safetensors", metadata={"format": "pt"})
        models.append(model)
    return [*models, base]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Find:
    """Returns what mergekit made of a case, in float32."""
    outputs = load_file(folder / "outputs.safetensors")
    return lambda case, dtype=torch.float32: outputs[f"{case} {dtype}"]


def share_within_one_ulp(found: Tensor, expected: Tensor) -> float:
    """The share of bf16 elements that are at most one step from what is expected."""
    far = [ulps_apart(a, b) > 1 for a, b in zip(found.split(1), expected.split(1), strict=True)]
    return 1 - sum(far) / max(1, len(far))


def assert_alike(found: Tensor, expected: Tensor) -> None:
    found, expected = found.reshape(-1), expected.bfloat16().reshape(-1)
    different = found != expected
    near = share_within_one_ulp(found[different], expected[different]) if different.any() else 1.0
    share = 1 - (1 - near) * float(different.double().mean())
    assert share >= 0.9999, f"only {share:.4%} of the elements are within one step"


@pytest.mark.parametrize("case", ALIKE, ids=str)
def test_the_same_as_mergekit_in_float32(case: Case, theirs: Find) -> None:
    assert_alike(case.ours(), theirs(case))


@pytest.mark.parametrize("case", HALF, ids=str)
def test_the_same_from_bf16_models(case: Case, theirs: Find) -> None:
    assert_alike(case.ours(torch.bfloat16), theirs(case, torch.bfloat16))


@pytest.mark.parametrize("case", RECIPES, ids=lambda case: case.method)
def test_the_same_as_its_real_program_on_a_tiny_llama(case: Case, folder: Path) -> None:
    merged = load_file(folder / f"merged-{case.method}" / "model.safetensors")
    sources = [load_file(folder / f"model-{i}" / "model.safetensors") for i in range(case.models)]
    base = load_file(folder / "base" / "model.safetensors")
    assert merged.keys() == base.keys()
    found = {
        name: run_method(
            case.method,
            [source[name] for source in sources],
            base[name] if case.base else None,
            case.settings,
            case.settings_of_each,
            compute="F64",
            out_dtype=torch.bfloat16,
        )
        for name in base
    }
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    assert_alike(*(torch.cat([t[n].reshape(-1) for n in base]) for t in (found, merged)))


def test_every_method_that_mergekit_has_is_compared(folder: Path) -> None:
    assert {case.method for case in EQUAL} == set(json.loads((folder / "methods.json").read_text()))


def test_of_equal_magnitudes_mergekit_keeps_any_and_we_keep_all(theirs: Find) -> None:
    """bf16 changes are full of equal ones; the TIES authors keep all that equal the threshold."""
    tuned, base = EQUAL_MAGNITUDES.inputs(torch.bfloat16)
    size = (tuned.float() - base.float()).abs()
    kept = EQUAL_MAGNITUDES.ours(torch.bfloat16, out_dtype=torch.float32) != base.float()
    exact = theirs(EQUAL_MAGNITUDES, torch.bfloat16) != base.float()
    assert int(exact.sum()) == int(0.2 * base.numel())
    assert not bool((exact & ~kept).any())
    assert set(size[kept & ~exact].tolist()) == {float(size[kept].min())}


def test_small_changes_disable_the_weights_of_sce_in_mergekit(theirs: Find) -> None:
    """Where the mean square is below 10⁻⁶, it takes equal weights: those of TIES without a trim."""
    equal = run_method("ties", SMALL_CHANGES.inputs()[:-1], SMALL_CHANGES.inputs()[-1])
    difference = (theirs(SMALL_CHANGES) - equal).abs().max()
    assert difference < 1e-8
    ours = SMALL_CHANGES.ours(out_dtype=torch.float32)
    assert (ours - equal).abs().max() > 100 * difference


def test_mergekit_moves_by_less_than_t_where_that_is_below_its_epsilon(theirs: Find) -> None:
    tuned, base = (tensor.double() for tensor in SMALL_STEP.inputs())
    far = (tuned - base).abs() > 5e-8
    moved = [
        (merged.double() - base)[far].abs().mean()
        for merged in (SMALL_STEP.ours(out_dtype=torch.float64), theirs(SMALL_STEP))
    ]
    assert moved[0] == pytest.approx(1e-8, rel=1e-6)
    assert moved[1] < 0.7e-8


def test_the_divergence_of_nearly_equal_rows_is_noise_in_float32(theirs: Find) -> None:
    """So mergekit takes other changes than the formula; we compute it in float64."""
    tensors, base = NEARLY_EQUAL_ROWS.inputs()[:1], NEARLY_EQUAL_ROWS.inputs()[1]
    call = Call([tensors[0].double()], base.double(), lambda model: base, {})
    expected, _ = FORMULAS["arcee_fusion"](call)
    taken = [
        merged.double() != base.double()
        for merged in (NEARLY_EQUAL_ROWS.ours(out_dtype=torch.float64), theirs(NEARLY_EQUAL_ROWS))
    ]
    wrong = [int((mask != (expected != base.double())).sum()) for mask in taken]
    assert wrong[0] <= 2 < wrong[1]


def test_dare_drops_as_many_and_rescales_alike(theirs: Find) -> None:
    """Its random stream cannot be had again, so shares and norms are compared."""
    tuned, base = (tensor.double() for tensor in DARE.inputs())
    delta, numel = tuned - base, base.numel()
    for merged in (DARE.ours(out_dtype=torch.float64), theirs(DARE).double()):
        kept = (merged - base).abs() > 1e-8
        assert abs(float(kept.double().mean()) - 0.3) < 5 * (0.21 / numel) ** 0.5
        factors = ((merged - base) / delta)[kept & (delta.abs() > 1e-4)]
        assert float(factors.mean()) == pytest.approx(1 / 0.3, rel=0.02)
        assert float(factors.std()) < 1e-3
    by_norm = Case("dare_linear", 1, {**DARE.settings, "rescale_by": "l1"})
    for merged in (by_norm.ours(out_dtype=torch.float64), theirs(DARE).double()):
        assert float((merged - base).abs().sum()) == pytest.approx(float(delta.abs().sum()), 1e-5)


def test_della_drops_by_rank_as_mergekit_does(theirs: Find) -> None:
    tuned, base = (tensor.double() for tensor in DELLA.inputs())
    order = (tuned - base).abs().argsort(dim=1)
    by_norm = Case("della_linear", 1, {**DELLA.settings, "rescale_by": "l1"})
    for merged in (by_norm.ours(out_dtype=torch.float64), theirs(DELLA).double()):
        kept = ((merged - base).abs() > 1e-9).double().gather(1, order)
        shares = [float(part.mean()) for part in kept.split(SHAPE[1] // 5, dim=1)]
        # A fifth of the ranks each: from 0.4 − 0.3 to 0.4 + 0.3. Some changes are too small to see.
        assert shares == pytest.approx([0.16, 0.28, 0.4, 0.52, 0.64], abs=0.03)
        assert float((merged - base).abs().sum()) == pytest.approx(
            float((tuned - base).abs().sum()), rel=1e-5
        )
