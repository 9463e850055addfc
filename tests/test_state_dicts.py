"""State dicts in memory: merged to a new one of the same kind; what has no average is refused."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streammerge as sm
from streammerge.errors import RecipeError, TensorsDifferError, UnsupportedError
from tests.support.checkpoints import Tensors, like, random_tensors
from tests.support.merging import assert_exact, assert_same_bits, merge, refusal

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.int64, torch.bool)


def three(dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Tensors]:
    first = random_tensors(1, dtypes)
    return [first, like(first, 2), like(first, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": [5, 3, 2]},
        {"weights": [0.123456789, 1.0, 3.3]},
        {"weights": [1, 0, 2]},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"keep": ["block.[0-5].*"]},
    ],
    ids=str,
)
def test_the_bits_are_those_of_files(tmp_path: Path, options: dict[str, Any]) -> None:
    models = three()
    assert_same_bits(sm.average(models, **options), merge(tmp_path, models, **options))


def test_the_bits_are_those_of_files_for_mixed_dtypes(tmp_path: Path) -> None:
    models = three(FLOATS[:1])
    models[1] = {name: tensor.float() for name, tensor in models[1].items()}
    models[2] = {name: tensor.half() for name, tensor in models[2].items()}
    assert_same_bits(sm.average(models), merge(tmp_path, models))


def test_tensors_larger_than_a_window_are_exact() -> None:
    shape = (1234, 2345)
    models = [{"w": torch.randn(shape).to(torch.bfloat16), "b": torch.ones(3)} for _ in range(3)]
    merged = sm.average(models, weights=[0.5, 0.3, 0.2])
    assert_exact(merged["w"], [model["w"] for model in models], [0.5, 0.3, 0.2])


def test_sums_without_normalization_are_the_sums() -> None:
    models = [{"w": torch.tensor([1.0, 2.5])}, {"w": torch.tensor([4.0, -1.0])}]
    merged = sm.weighted_average(models, [0.5, 0.25], normalize=False)
    assert merged["w"].tolist() == [1.5, 1.0]
    assert sm.weighted_average(models, [1, -1], normalize=False)["w"].tolist() == [-3.0, 3.5]
    refusal(lambda: sm.weighted_average(models, [1, -1]), "sum to zero")


def test_an_ordered_state_dict_keeps_order_and_versions() -> None:
    nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    states = [net.state_dict() for net in nets]
    merged = sm.average(states)
    assert type(merged) is OrderedDict
    assert list(merged) == list(states[0])
    assert merged._metadata == states[0]._metadata
    assert merged._metadata is not states[0]._metadata
    nets[0].load_state_dict(merged)
    for name, tensor in sm.average([nets[0], nets[1]]).state_dict().items():
        if tensor.is_floating_point():
            assert_exact(tensor, [merged[name], states[1][name]])


def test_other_mappings_become_dicts() -> None:
    a, b = {"x": torch.ones(3), "a": torch.zeros(2)}, {"a": torch.ones(2), "x": torch.ones(3)}
    for given in (a, MappingProxyType(a)):
        merged = sm.average([given, OrderedDict(b)])
        assert type(merged) is dict
        assert list(merged) == ["x", "a"]
        assert merged["a"].tolist() == [0.5, 0.5]


def test_inputs_keep_their_bits_and_the_result_has_memory_of_its_own() -> None:
    models = three()
    before = [{name: tensor.clone() for name, tensor in model.items()} for model in models]
    merged = sm.average(models)
    for model, old in zip(models, before, strict=True):
        assert_same_bits(model, old)
    theirs = {t.untyped_storage().data_ptr() for model in models for t in model.values()}
    assert theirs.isdisjoint(t.untyped_storage().data_ptr() for t in merged.values() if t.numel())
    for tensor in merged.values():
        tensor.zero_()
    for model, old in zip(models, before, strict=True):
        assert_same_bits(model, old)


def test_parameters_come_back_as_tensors() -> None:
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    merged = sm.average([dict(net.named_parameters()) for net in nets])
    assert [type(tensor) for tensor in merged.values()] == [Tensor, Tensor]
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_names_of_one_tensor_stay_so() -> None:
    models = []
    for seed in range(2):
        shared = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        models.append({"embedding": shared, "head": shared, "turned": shared.t()})
    merged = sm.average(models)
    assert merged["embedding"] is merged["head"]
    assert torch.equal(merged["turned"], merged["embedding"].t())


def test_any_layout_in_memory() -> None:
    def strided(seed: int) -> Tensors:
        values = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        return {"t": values.t(), "s": values[::2, 1::3], "e": values[:1].expand(5, 8)}

    models = [strided(seed) for seed in range(3)]
    models[1] = {name: tensor.contiguous() for name, tensor in models[1].items()}
    merged = sm.average(models)
    for name, tensor in merged.items():
        assert_exact(tensor.contiguous(), [model[name].contiguous() for model in models])


def test_views_of_one_buffer_are_merged_each() -> None:
    flat = [torch.arange(6.0) * k for k in (1, 3)]
    merged = sm.average([{"a": f[:3], "b": f[3:], "c": f[2:4]} for f in flat])
    assert merged["a"].tolist() == [0, 2, 4]
    assert merged["b"].tolist() == [6, 8, 10]
    assert merged["c"].tolist() == [4, 6]


def test_integers_alone() -> None:
    same = [{"steps": torch.tensor(3)}, {"steps": torch.tensor(3)}]
    merged = sm.average(same)
    assert merged["steps"].item() == 3
    assert merged["steps"] is not same[0]["steps"]
    with pytest.raises(TensorsDifferError, match="steps"):
        sm.average([same[0], {"steps": torch.tensor(4)}])


def test_empty_state_dicts() -> None:
    assert sm.average([{}, {}]) == {}


# What is refused.


def test_state_dicts_of_one_living_model_are_refused() -> None:
    net, history = nn.Linear(3, 3), []
    for _ in range(3):
        net.weight.data += 1
        history.append(net.state_dict())
    refusal(lambda: sm.average(history), "same memory", r"deepcopy\(model\.state_dict\(\)\)")
    kept = [copy.deepcopy(state) for state in history]
    for k, state in enumerate(kept):
        state["weight"] += k
    assert torch.equal(sm.average(kept)["weight"], kept[1]["weight"])


def test_models_may_share_a_frozen_part() -> None:
    frozen = torch.randn(4)
    models = [{"frozen": frozen, "w": torch.ones(2) * k} for k in (1, 3)]
    merged = sm.average(models)
    assert torch.equal(merged["frozen"], frozen)
    assert merged["frozen"].data_ptr() != frozen.data_ptr()
    assert merged["w"].tolist() == [2, 2]


class Marked(Tensor):
    """A tensor of a class of its own."""


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of this dtype
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def sparse(layout: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls some of these beta
        return getattr(torch.eye(3), f"to_sparse_{layout}" if layout != "coo" else "to_sparse")()


REFUSED: dict[str, tuple[Any, str]] = {
    "sparse": (lambda: sparse("coo"), r"not dense(?s:.)*to_dense"),
    "compressed": (lambda: sparse("csr"), r"not dense(?s:.)*to_dense"),
    "meta": (lambda: torch.empty(3, device="meta"), "meta device"),
    "quantized": (quantized, "quantized"),
    "subclass": (lambda: torch.ones(3).as_subclass(Marked), "Marked"),
    "fp8": (lambda: torch.ones(3).to(torch.float8_e4m3fn), "quantized.*F8_E4M3"),
    "packed": (lambda: torch.ones(3, 3, dtype=torch.uint8), "quantized.*U8"),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), "complex"),
    "double complex": (lambda: torch.ones(3, dtype=torch.complex128), "complex128"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("place", [0, 1])
def test_tensors_without_an_average_are_refused_by_name(kind: str, place: int) -> None:
    make, pattern = REFUSED[kind]
    models: list[Tensors] = [{"block.weight": torch.ones(3)} for _ in range(2)]
    models[place]["block.weight"] = make()
    if kind == "complex":
        models[1 - place]["block.weight"] = make()
    refusal(lambda: sm.average(models), r"block\.weight", "models", pattern)
    with pytest.raises(UnsupportedError):
        sm.average(models)


def test_complex_numbers_can_be_kept() -> None:
    models = [{"w": torch.ones(2) * k, "f": torch.tensor([1 + 2j]) * k} for k in (1, 3)]
    merged = sm.average(models, keep="f")
    assert merged["f"].tolist() == [1 + 2j]
    assert merged["w"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("entry", "pattern"),
    [
        ({"optimizer": {"lr": 0.1}}, "'optimizer', a dict"),
        ({"step": 7}, "'step', a int"),
        ({3: torch.ones(2)}, "3, a Tensor"),
    ],
)
def test_what_is_no_state_dict_is_refused(entry: dict[Any, Any], pattern: str) -> None:
    models = [{"w": torch.ones(2)}, {"w": torch.ones(2), **entry}]
    refusal(lambda: sm.average(models), r"models\[1\]", pattern, r"checkpoint\['model'\]")


def test_factors_of_adapters_are_refused() -> None:
    models = [{"q_proj.lora_A.default.weight": torch.ones(2, 2)} for _ in range(2)]
    refusal(lambda: sm.average(models), "LoRA", "merge_and_unload")


def test_a_scalar_does_not_become_a_vector() -> None:
    refusal(lambda: sm.average([{"w": torch.ones(1)}, {"w": torch.tensor(1.0)}]), r"w: \[1\]")


def test_modules_and_state_dicts_do_not_mix() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(RecipeError):
        sm.average([nn.Linear(2, 2).state_dict(), net])
