"""Schedules: every registered one, and each against its formula written another way."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest

from streammerge.errors import RecipeError
from streammerge.schedules import SCHEDULES, coefficients

SPECS = [
    "uniform",
    "linear",
    "ema:0.2",
    "ema:0",
    "ema:0.999",
    "ema:half_life=3",
    "ema:decay=1/3",
    "wsm",
    "wsm:linear",
    "wsm:cosine",
    "wsm:minus-sqrt",
    "wsm:curve=minus_sqrt",
]


def spec_for(name: str, n: int) -> str:
    """A spec of a schedule by its name alone, with the arguments that it must have."""
    needed = {"ema": "ema:0.5", "explicit": "explicit:" + ",".join(["1"] * n)}
    return needed.get(name, name)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 300])
def test_every_schedule_gives_one_share_for_each_checkpoint(n: int) -> None:
    for spec in [*SPECS, *(spec_for(name, n) for name in SCHEDULES)]:
        shares = coefficients(spec, n)
        assert len(shares) == n, spec
        assert sum(shares) == pytest.approx(1, abs=1e-12), spec
        assert all(share >= 0 for share in shares), spec


@pytest.mark.parametrize("spec", ["uniform", "linear", "ema:0.2", "wsm:linear", "explicit:1,2,3"])
def test_what_is_rational_is_exact(spec: str) -> None:
    shares = coefficients(spec, 3)
    assert all(isinstance(share, Fraction) for share in shares)
    assert sum(shares) == 1


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("decay", ["0", "0.2", "0.9"])
def test_ema_is_the_running_average_that_it_stands_for(n: int, decay: str) -> None:
    beta = Fraction(decay)
    for position in range(n):
        checkpoints = [Fraction(int(i == position)) for i in range(n)]
        average = checkpoints[0]
        for checkpoint in checkpoints[1:]:
            average = beta * average + (1 - beta) * checkpoint
        assert coefficients(f"ema:{decay}", n)[position] == average


def test_after_a_half_life_half_is_left() -> None:
    shares = coefficients("ema:half_life=4", 20)
    assert shares[10] / shares[14] == pytest.approx(0.5)
    assert coefficients("ema:half_life=1", 5) == pytest.approx(coefficients("ema:0.5", 5))


def test_linear_counts_up() -> None:
    assert coefficients("linear", 4) == tuple(Fraction(i, 10) for i in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("curve", "shape"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: math.cos(math.pi * x / 2) ** 2),
        ("minus-sqrt", lambda x: 1 - x**0.5),
    ],
)
def test_wsm_reads_off_the_decay_curve(curve: str, shape: object) -> None:
    # A step that all checkpoints but the first j have taken counts as much as the curve says then:
    # the coefficients from j on add up to the curve's value at j of n.
    n = 9
    shares = coefficients(f"wsm:{curve}", n)
    for j in range(n):
        assert sum(shares[j:]) == pytest.approx(shape(j / n))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("linear", [1 / 6] * 6),
        ("minus-sqrt", [0.408, 0.169, 0.130, 0.109, 0.096, 0.087]),
        ("cosine", [0.067, 0.183, 0.250, 0.250, 0.183, 0.067]),
    ],
)
def test_wsm_of_six_checkpoints(curve: str, expected: list[float]) -> None:
    assert coefficients(f"wsm:{curve}", 6) == pytest.approx(expected, abs=6e-4)


def test_explicit_numbers_are_shares_of_their_sum() -> None:
    assert coefficients("explicit:1, 2,0.5", 3) == (Fraction(2, 7), Fraction(4, 7), Fraction(1, 7))


@pytest.mark.parametrize(
    ("spec", "pattern"),
    [
        ("emma:0.2", "did you mean 'ema'"),
        ("", "no schedule is called ''"),
        ("ema", "needs a decay or a half-life"),
        ("ema:0.2,half_life=3", "needs a decay or a half-life"),
        ("ema:1", r"\[0, 1\)"),
        ("ema:-0.1", r"\[0, 1\)"),
        ("ema:much", "'much' is no number"),
        ("ema:1/0", "'1/0' is no number"),
        ("ema:half_life=0", "must be positive"),
        ("ema:0.1,0.2,0.3", "arguments that ema does not take"),
        ("ema:beta=0.1", "arguments that ema does not take"),
        ("uniform:3", "arguments that uniform does not take"),
        ("wsm:square", "no decay curve 'square'"),
        ("explicit:1,2", "2 numbers for 3 checkpoints"),
        ("explicit:1,-1,0", "sums to zero"),
        ("explicit:1,2,x", "'x' is no number"),
    ],
)
def test_what_makes_no_sense_is_refused(spec: str, pattern: str) -> None:
    with pytest.raises(RecipeError, match=pattern):
        coefficients(spec, 3)
