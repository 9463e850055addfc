"""Order statistics without a sort are those of a sort, whatever the sample says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from streammerge.methods import ranks
from streammerge.methods.place import Place
from streammerge.methods.ranks import Ranks, Tally
from tests.support.checkpoints import rng

CHUNK = 1000
SIZE = 20_011


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of about 500 elements, and tallies that are soon full."""
    monkeypatch.setattr(ranks, "SAMPLE", 500)
    monkeypatch.setattr(ranks, "_DISTINCT", 64)
    monkeypatch.setattr(ranks, "_WAITING", 300)


def find(values: Tensor, wanted: Sequence[int], presliced: bool = True) -> tuple[list[float], int]:
    """Return the magnitudes of these ranks, and how many rounds that took."""
    numel = values.numel()
    measurement = Ranks([(0, rank) for rank in wanted], numel, lambda tensors, base: tensors)
    rounds, more = 0, True
    while more:
        rounds += 1
        for first in reversed(range(0, numel, CHUNK)):
            chunk = values[first : first + CHUNK].clone()
            place = Place("w", (numel,), first, chunk.numel())
            part = chunk[:: measurement.every] if presliced else chunk
            measurement.add(measurement.observe([part], None, place))
        more = measurement.another_round()
        assert rounds < 12
    return measurement.values, rounds


def normal(dtype: torch.dtype) -> Tensor:
    return torch.randn(SIZE, generator=rng(1), dtype=torch.float64).to(dtype)


def differences(dtype: torch.dtype) -> Tensor:
    """What a fine-tune in bf16 looks like: few distinct values, many zeros."""
    base = normal(torch.float32) / 50
    tuned = base.bfloat16() + torch.randn(SIZE, generator=rng(2)).bfloat16() / 2000
    return (tuned.float() - base.bfloat16().float()).to(dtype)


def misleading(dtype: torch.dtype) -> Tensor:
    """What the sample sees is nothing like the rest."""
    values = normal(dtype)
    every = SIZE // 500 | 1
    for first in range(0, SIZE, CHUNK):
        values[first : first + CHUNK : every] = 1e-30
    return values


def misleading_upwards(dtype: torch.dtype) -> Tensor:
    return 1 / misleading(dtype).clamp(min=1e-20)


def extremes(dtype: torch.dtype) -> Tensor:
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = torch.tensor([0.0, -0.0, tiny, -tiny, 1.0, -math.inf, math.inf, 3e38], dtype=dtype)
    return values.repeat(SIZE // 8)


def constant(dtype: torch.dtype) -> Tensor:
    return torch.full((SIZE,), -0.25, dtype=dtype)


KINDS: list[Callable[[torch.dtype], Tensor]] = [
    normal,
    differences,
    misleading,
    misleading_upwards,
    extremes,
    constant,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("presliced", [True, False], ids=["a sample comes", "all comes"])
def test_ranks_are_those_of_a_sort(
    kind: Callable[[torch.dtype], Tensor], dtype: torch.dtype, presliced: bool
) -> None:
    values = kind(dtype)
    size = values.numel()
    wanted = [1, 2, 17, size // 5, size // 2, size - 1, size]
    ordered = np.sort(np.abs(values.numpy()))[::-1]
    found, _ = find(values, wanted, presliced)
    assert found == [float(ordered[rank - 1]) for rank in wanted]


def test_an_honest_sample_saves_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_DISTINCT", 9000)
    assert find(differences(torch.float32), [SIZE // 5])[1] == 2
    assert find(normal(torch.float32), [SIZE // 5])[1] == 2
    assert find(normal(torch.float32)[:400], [100])[1] == 1  # it is its own sample


def test_no_element_has_a_rank_below_one_and_none_beyond_the_last() -> None:
    values = normal(torch.float32)
    found, rounds = find(values, [0])
    assert (found, rounds) == ([math.inf], 1)
    assert find(values, [SIZE + 5])[0] == [float(values.abs().min())]


def test_nan_is_larger_than_everything() -> None:
    values = normal(torch.float32)
    largest = float(values.abs().max())
    values[torch.arange(0, 30)] = math.nan
    (first, after), _ = find(values, [30, 31])
    assert math.isnan(first)
    assert after <= largest


def test_a_tally_holds_few_keys_whatever_it_counts() -> None:
    generator = np.random.default_rng(1)
    tally = Tally()
    everything = [generator.integers(0, 2**31, 777).astype(np.int32) for _ in range(40)]
    for keys in everything:
        tally.add(keys, np.ones(len(keys), np.int64))
    keys, counts = tally.result()
    assert 0 < len(keys) <= 64
    expected = np.unique(np.concatenate(everything) >> tally.shift, return_counts=True)
    assert np.array_equal(keys, expected[0])
    assert np.array_equal(counts, expected[1])
