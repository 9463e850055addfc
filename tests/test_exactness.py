"""Every element is the exact weighted mean, rounded once; held against fractions, not floats."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import Tensors, like, random_tensor, random_tensors, rng
from tests.support.merging import assert_exact, merge
from tests.support.reference import exact_mean, ulps_apart, wrong_elements

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
MILLION = 2**20
DECIMALS = [
    (0.7, 0.3),
    (5, 3, 2),
    (0.1, 0.1, 0.1),
    (0.25, 0.75),
    (1.5, 0.5, 1, 1),
    (0.001, 0.999),
    (2, -1),
    (1, 0),
]
ARBITRARY = [
    (0.1234567890123, 0.87654321),
    (math.pi, math.e, math.sqrt(2)),
    (1 / 3, 2 / 3),
    (1e-9, 1.0, 0.3),
]


def fine_tunes(count: int, dtype: torch.dtype, size: int = MILLION) -> list[Tensors]:
    """Fine-tunes of one base, and beside them tensors that have nothing in common."""
    base = {"tuned.weight": random_tensor((size,), dtype, seed=1)}
    models = [like(base, seed=10 + i, scale=0.02) for i in range(count)]
    for i, model in enumerate(models):
        model["apart.weight"] = random_tensor((size,), dtype, seed=50 + i)
    return models


def assert_all_exact(
    merged: Tensors, models: list[Tensors], weights: tuple[float, ...] | None = None
) -> None:
    assert merged.keys() == models[0].keys()
    for name, tensor in merged.items():
        assert_exact(tensor, [m[name] for m in models], weights)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_uniform_mean_of_a_million_elements(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    models = fine_tunes(count, dtype, MILLION if dtype == BF16 else MILLION // 8)
    assert_all_exact(merge(tmp_path, models), models)


@pytest.mark.parametrize("weights", DECIMALS, ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_decimal_weights_are_exact(
    tmp_path: Path, weights: tuple[float, ...], dtype: torch.dtype
) -> None:
    models = fine_tunes(len(weights), dtype, MILLION // 8)
    assert_all_exact(merge(tmp_path, models, weights=list(weights)), models, weights)


@pytest.mark.parametrize("weights", ARBITRARY, ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_any_weights_are_within_one_ulp_and_nearly_always_exact(
    tmp_path: Path, weights: tuple[float, ...], dtype: torch.dtype
) -> None:
    models = fine_tunes(len(weights), dtype, 2**14)
    for name, tensor in merge(tmp_path, models, weights=list(weights)).items():
        expected = exact_mean([m[name] for m in models], weights, dtype)
        wrong, far = wrong_elements(tensor, expected), ulps_apart(tensor, expected)
        assert wrong <= tensor.numel() * 1e-4, f"{wrong} of {tensor.numel()} elements wrong"
        assert far <= 1, f"{wrong} elements wrong, by up to {far} ulp"


@pytest.mark.parametrize("scale", [10, 0.01, 3])
def test_scaled_weights_give_the_same_bits(tmp_path: Path, scale: float) -> None:
    models = fine_tunes(3, BF16, 2**16)
    first = merge(tmp_path / "a", models, weights=[5, 3, 2])
    second = merge(tmp_path / "b", models, weights=[5 * scale, 3 * scale, 2 * scale])
    for name in first:
        assert wrong_elements(first[name], second[name]) == 0


@pytest.mark.parametrize("weights", [None, (0.7, 0.3)], ids=str)
def test_mixed_dtypes_within_and_between_models(
    tmp_path: Path, weights: tuple[float, ...] | None
) -> None:
    order = (BF16, FP16, FP32, FP64)
    first = {str(d): random_tensor((5_003,), d, seed=3) for d in order}
    second = {
        str(d): random_tensor((5_003,), e, 4) for d, e in zip(order, order[::-1], strict=True)
    }
    merged = merge(tmp_path, [first, second], weights=weights)
    for name in first:
        if weights is None or first[name].dtype != FP64:
            assert_exact(merged[name], [first[name], second[name]], weights, first[name].dtype)


@pytest.mark.parametrize("wanted", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("given", [BF16, FP16, FP32, FP64], ids=str)
def test_output_dtype_is_reached_by_one_rounding(
    tmp_path: Path, given: torch.dtype, wanted: str
) -> None:
    size = 2**13 if given == FP64 else 2**16  # fp64 sums are rarely exact: slow by fractions
    models = [{"w": random_tensor((size,), given, seed=i)} for i in (1, 2, 3)]
    merged = merge(tmp_path, models, dtype=wanted)["w"]
    assert_exact(merged, [m["w"] for m in models], None, getattr(torch, wanted))


def test_a_mean_just_above_a_tie_is_not_rounded_twice(tmp_path: Path) -> None:
    # The mean is 1 + 2^-8 + 2^-24: float32 would round it to the tie 1 + 2^-8, and that to 1.
    pair = [{"w": torch.tensor([1 + 2**-8])}, {"w": torch.tensor([1 + 2**-8 + 2**-23])}]
    assert merge(tmp_path, pair, dtype="bfloat16")["w"].item() == 1 + 2**-7


EXTREMES: dict[torch.dtype, list[float]] = {
    BF16: [3e38, -3e38, 3.3e38, 1e38, 2.0**-133, 3 * 2.0**-133, -(2.0**-133), 2.0**-126],
    FP16: [40000.0, -40000.0, 65504.0, 33000.0, 2.0**-24, 3 * 2.0**-24, -(2.0**-24), 2.0**-14],
    FP32: [3.4e38, -3.4e38, 3e38, 2e38, 2.0**-149, 3 * 2.0**-149, -(2.0**-149), 2.0**-126],
}


@pytest.mark.parametrize("weights", [None, (0.7, 0.3), (0.7, 0.2, 0.1), (3, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", EXTREMES, ids=str)
def test_overflowing_sums_subnormals_ties_zeros_and_cancelling(
    tmp_path: Path, dtype: torch.dtype, weights: tuple[float, ...] | None
) -> None:
    step = torch.finfo(dtype).eps
    values = [*EXTREMES[dtype], 0.0, -0.0, 1.0, 1 + step, -1.0, -1 - step, 1 + 3 * step, 2.0]
    pairs = torch.cartesian_prod(*[torch.tensor(values, dtype=FP64).to(dtype)] * 2)
    columns = [pairs[:, 0], pairs[:, 1], pairs[:, 0], pairs[:, 1]][: len(weights or (1, 1))]
    models = [{"w": c.contiguous()} for c in columns]
    assert_exact(merge(tmp_path, models, weights=weights)["w"], columns, weights)


@pytest.mark.parametrize("dtype", EXTREMES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_equal_models_are_unchanged_even_near_the_largest_value(
    tmp_path: Path, count: int, dtype: torch.dtype
) -> None:
    info = torch.finfo(dtype)
    largest = torch.tensor([info.max, -info.max, *EXTREMES[dtype], -0.0], dtype=FP64).to(dtype)
    merged = merge(tmp_path, [{"w": largest}] * count)["w"]
    assert wrong_elements(merged, largest) == 0, f"{merged.tolist()} from {largest.tolist()}"


def test_sums_that_cancel_keep_every_bit_of_fp32(tmp_path: Path) -> None:
    # Multiples of 2^-40 below 2^3: fp64 holds every sum, fp32 few of them.
    big = (torch.randn(2**16, generator=rng(1)) * 2**20).round() * 2**-20
    small = (torch.randn(2**16, generator=rng(2)) * 2**20).round() * 2**-40
    columns = [big, small, -big]
    models = [{"w": c} for c in columns]
    assert_exact(merge(tmp_path, models)["w"], columns)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_an_element_does_not_depend_on_its_neighbours(tmp_path: Path, dtype: torch.dtype) -> None:
    # In fp32 the sum of the first three loses what fp64 keeps; the next sum overflows fp32 (bf16).
    step = torch.finfo(dtype).eps
    rows = [[1.0, 3e38], [step / 2, 3e38], [2.0**-30, 3e38], [0.0, 3e38]]
    rows = [[a, min(b, torch.finfo(dtype).max)] for a, b in rows]
    alone = [{"w": torch.tensor([row[0]] * 64, dtype=dtype)} for row in rows]
    beside = [{"w": torch.tensor(row * 32, dtype=dtype)} for row in rows]
    first = merge(tmp_path / "alone", alone)["w"]
    second = merge(tmp_path / "beside", beside)["w"]
    assert wrong_elements(first[::2], second[::2]) == 0


def test_odd_shapes_are_exact_and_integers_are_copied(tmp_path: Path) -> None:
    first = random_tensors(1, (BF16, FP16, FP32, torch.int64, torch.int8, torch.bool))
    models = [first, like(first, seed=2), like(first, seed=3)]
    merged = merge(tmp_path, models)
    assert merged.keys() == first.keys()
    for name, tensor in first.items():
        if tensor.dtype.is_floating_point:
            assert_exact(merged[name], [m[name] for m in models])
        else:
            assert merged[name].dtype == tensor.dtype
            assert torch.equal(merged[name], tensor)
