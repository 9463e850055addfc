"""The reference itself, held against fractions: a wrong judge makes every verdict worthless."""

from __future__ import annotations

import bisect
import functools
import math
from fractions import Fraction

import pytest
import torch

from tests.support.checkpoints import rng
from tests.support.reference import exact_mean, ulps_apart, wrong_elements

HALVES = (torch.bfloat16, torch.float16)
NARROW = (*HALVES, torch.float32)


@functools.cache
def values_in_order(dtype: torch.dtype) -> list[tuple[float, int]]:
    """Every finite value of a 16-bit format with its bits, one zero only."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    keep = values.isfinite() & ~((values == 0) & values.signbit())
    return sorted(zip(values[keep].double().tolist(), bits[keep].tolist(), strict=True))


def nearest_by_search(exact: Fraction, dtype: torch.dtype) -> float:
    """The nearest value of a 16-bit format, ties to even, by looking at the values around it."""
    table = values_in_order(dtype)
    at = bisect.bisect(table, (float(exact), 0))
    near = sorted(table[max(at - 2, 0) : at + 3], key=lambda pair: abs(Fraction(pair[0]) - exact))
    first, second = near[:2]
    tie = abs(Fraction(first[0]) - exact) == abs(Fraction(second[0]) - exact)
    return second[0] if tie and first[1] % 2 else first[0]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("weights", [None, (0.7, 0.3), (5, 3), (2, -1)])
def test_sixteen_bit_means_are_the_nearest_values(
    dtype: torch.dtype, weights: tuple[float, float] | None
) -> None:
    pair = [torch.randn(12, generator=rng(i)).to(dtype) for i in (1, 2)]
    found = exact_mean(pair, weights, dtype).double().tolist()
    shares = [Fraction(str(w)) for w in weights or (1, 1)]
    for a, b, value in zip(*(t.double().tolist() for t in pair), found, strict=True):
        exact = (shares[0] * Fraction(a) + shares[1] * Fraction(b)) / sum(shares)
        assert value == nearest_by_search(exact, dtype)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_single_precision_means_have_no_nearer_neighbour(count: int) -> None:
    tensors = [torch.randn(200, generator=rng(i)) for i in range(count)]
    found = exact_mean(tensors, None, torch.float32)
    up, down = (torch.nextafter(found, torch.full_like(found, s * math.inf)) for s in (1, -1))
    columns = [t.tolist() for t in (*tensors, found, up, down)]
    for *values, here, above, below in zip(*columns, strict=True):
        exact = sum(map(Fraction, values)) / count
        assert abs(here - exact) <= min(abs(above - exact), abs(below - exact))


def test_a_double_rounding_through_float32_is_not_made() -> None:
    just_above_a_tie = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert just_above_a_tie.to(torch.bfloat16).item() == 1.0, "torch rounds once: simplify"
    assert exact_mean([just_above_a_tie] * 2, None, torch.bfloat16).item() == 1 + 2**-7


def test_cancelling_sums_are_exact() -> None:
    values = [torch.tensor([v], dtype=torch.float64) for v in (1e30, 1.0, -1e30)]
    assert exact_mean(values, None, torch.float32).item() == float(torch.tensor(1 / 3))
    ones = [torch.tensor([v], dtype=torch.float64) for v in (2.0**1000, 3.0, -(2.0**1000))]
    assert exact_mean(ones, None, torch.float32).item() == 1.0


@pytest.mark.parametrize("dtype", NARROW)
def test_the_edges_of_each_format(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    least = info.smallest_normal * info.eps
    cases = [info.max, -info.max, info.smallest_normal, least, -least, 0.0, -0.0, math.inf]
    edge = torch.tensor(cases, dtype=torch.float64).to(dtype)
    assert wrong_elements(exact_mean([edge] * 3, None, dtype), edge) == 0
    zero = torch.zeros_like(edge[:7])
    halves = exact_mean([edge[3:5], zero[:2]], None, dtype)
    assert halves.tolist() == [0.0, 0.0], "half the least value is a tie, and goes to zero"


@pytest.mark.parametrize("dtype", NARROW)
def test_errors_are_counted_in_elements_and_in_steps(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -1.0, 0.0, 5.0]).to(dtype)
    moved = values.clone()
    moved[0] = moved[0] * (1 + torch.finfo(dtype).eps)
    moved[2] = -0.0
    assert (wrong_elements(moved, values), ulps_apart(moved, values)) == (2, 1)
