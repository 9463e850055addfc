"""Random numbers that depend on seed, name, stream and element, and on nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from streammerge.methods.place import Place

SHAPE = (301, 1000)
NUMEL = 301_000


def numbers(name: str = "w", seed: int = 0, stream: int = 0) -> Tensor:
    return Place(name, SHAPE, 0, NUMEL).uniform(seed, stream, torch.empty(SHAPE))


@pytest.mark.parametrize("first", [0, 1, 15, 16, 17, 63, 64, 99_999])
@pytest.mark.parametrize("numel", [1, 3, 16, 1001])
def test_a_block_has_the_numbers_of_its_elements(first: int, numel: int) -> None:
    place = Place("w", SHAPE, first, numel)
    whole = numbers().reshape(-1)[first : first + numel]
    assert torch.equal(place.uniform(0, 0, torch.empty(numel)), whole)
    wide = place.uniform(0, 0, torch.empty(numel, dtype=torch.float64))
    assert torch.equal(wide, whole.double())
    for probability in (0.001, 0.25, 0.5, 0.9, 1 - 2**-16):
        chosen = place.chosen(0, 0, probability, torch.empty(numel))
        assert torch.equal(chosen, (whole < probability).float())


def test_numbers_are_even_and_lie_within_zero_and_one() -> None:
    values = numbers().double()
    assert 0 < float(values.min()) <= float(values.max()) < 1
    spread = math.sqrt(1 / 12 / NUMEL)
    assert abs(float(values.mean()) - 0.5) < 5 * spread
    counts = torch.histc(values, 100, 0, 1)
    square = float(((counts - NUMEL / 100) ** 2 / (NUMEL / 100)).sum())
    assert 50 < square < 170  # chi-square of 99 degrees of freedom
    # Neighbours, and elements a row or a generator's step apart, have nothing in common.
    flat = values.reshape(-1) - 0.5
    for lag in (1, 2, 4, 16, 64, 1000):
        correlation = float((flat[lag:] * flat[:-lag]).mean()) * 12
        assert abs(correlation) < 5 / math.sqrt(NUMEL), lag


def test_seed_name_and_stream_each_give_other_numbers() -> None:
    first = numbers() - 0.5
    for other in (numbers(seed=1), numbers(name="v"), numbers(stream=1)):
        correlation = float((first * (other - 0.5)).double().mean()) * 12
        assert abs(correlation) < 5 / math.sqrt(NUMEL)


def test_these_numbers_never_change() -> None:
    """A recipe with a seed gives the same bytes in every version; else `ARITHMETIC` changes."""
    place = Place("model.layers.0.mlp.up_proj.weight", (4, 4), 0, 5)
    steps = place.uniform(42, 1, torch.empty(5)) * 2**16 - 0.5
    assert steps.tolist() == [46352, 14367, 61524, 1870, 47995]
