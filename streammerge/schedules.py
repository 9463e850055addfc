"""Schedules: n checkpoints of a training run → a coefficient for each, oldest first.

Coefficients sum to 1. They are exact where the formula is rational. To add a schedule, write a
function here whose first argument is n, and decorate it; its further arguments are what may stand
behind the colon of a spec such as `ema:0.2`, `ema:half_life=3` or `wsm:cosine`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

from streammerge.errors import RecipeError
from streammerge.plugins import Registry, UnknownNameError

Coefficients = Sequence[Fraction | float]
Schedule = Callable[..., Coefficients]

SCHEDULES: Registry[Schedule] = Registry("schedule")
_S = TypeVar("_S", bound=Schedule)


def schedule(name: str, aliases: tuple[str, ...] = ()) -> Callable[[_S], _S]:
    """Register a function as a schedule under a name."""

    def register(function: _S) -> _S:
        SCHEDULES.add(name, function, aliases)
        return function

    return register


@schedule("uniform", aliases=("lawa", "average"))
def uniform(n: int) -> Coefficients:
    """Return 1/n for each: model soups (arXiv:2203.05482), LAWA (2306.03241), PMA (2505.12082)."""
    return [Fraction(1, n)] * n


@schedule("linear", aliases=("ramp",))
def linear(n: int) -> Coefficients:
    """Return cᵢ ∝ i: the newest counts most, n times the oldest."""
    return [Fraction(2 * i, n * (n + 1)) for i in range(1, n + 1)]


@schedule("ema")
def ema(n: int, decay: str | None = None, half_life: str | None = None) -> Coefficients:
    """Return the weights of an exponential moving average that starts at the oldest.

    c₁ = βⁿ⁻¹, cᵢ = (1 − β)βⁿ⁻ⁱ.

    Args:
        n: number of checkpoints.
        decay: β in [0, 1), what is kept of the average at each further checkpoint.
        half_life: instead of it, after how many checkpoints half of it is left: β = 2^(−1/h).
    """
    if (decay is None) == (half_life is None):
        raise RecipeError(
            "the schedule ema needs a decay or a half-life", "Write ema:0.2 or ema:half_life=3."
        )
    beta: Fraction | float
    if half_life is not None:
        h = _number(half_life, "half_life")
        if h <= 0:
            raise RecipeError(f"the half-life of ema is {half_life}, but must be positive")
        beta = 2.0 ** float(-1 / h)
    else:
        beta = _number(str(decay), "decay")
    if not 0 <= beta < 1:
        raise RecipeError(f"the decay of ema is {decay}, but must lie in [0, 1)")
    return [beta ** (n - 1), *((1 - beta) * beta ** (n - i) for i in range(2, n + 1))]


@schedule("wsm")
def wsm(n: int, curve: str = "linear") -> Coefficients:
    """Return the weights that stand for a decay of the learning rate (WSM, arXiv:2507.17634).

    A decay curve 1 ≥ w₁ ≥ … ≥ w_k ≥ 0 over the k = n − 1 steps between n checkpoints gives
    c₀ = 1 − w₁, c_j = w_j − w_{j+1}, c_k = w_k.

    Args:
        n: number of checkpoints.
        curve: linear (which is uniform), cosine, or minus-sqrt (which weights the oldest most).
    """
    curves: dict[str, Callable[[Fraction], Fraction | float]] = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "minus-sqrt": lambda x: 1 - math.sqrt(x),
    }
    shape = curves.get(curve.replace("_", "-"))
    if shape is None:
        raise RecipeError(f"wsm knows no decay curve {curve!r}", f"Choose one of {_list(curves)}.")
    w = [1, *(shape(Fraction(j, n)) for j in range(1, n)), 0]
    return [left - right for left, right in pairwise(w)]


@schedule("explicit")
def explicit(n: int, *shares: str) -> Coefficients:
    """Return the given numbers, one for each checkpoint, divided by their sum."""
    numbers = [_number(share, "coefficient") for share in shares]
    if len(numbers) != n:
        raise RecipeError(
            f"an explicit schedule of {len(numbers)} numbers for {n} checkpoints",
            "Write one number for each checkpoint, oldest first, such as explicit:1,2,3.",
        )
    total = sum(numbers)
    if total == 0:
        raise RecipeError(f"the explicit schedule {', '.join(shares)} sums to zero")
    return [number / total for number in numbers]


def coefficients(spec: str, n: int) -> tuple[Fraction | float, ...]:
    """Return the coefficients of a schedule, oldest first.

    Args:
        spec: its name, then perhaps a colon and its arguments with commas between them.
        n: number of checkpoints, at least 1.

    Raises:
        RecipeError: there is no such schedule, or its arguments make no sense.
    """
    name, _, rest = spec.partition(":")
    try:
        function = SCHEDULES.get(name.strip())
    except UnknownNameError as error:
        raise RecipeError(str(error), f"Choose one of {_list(SCHEDULES)}.") from None
    words = [word.strip() for word in rest.split(",")] if rest else []
    named = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        inspect.signature(function).bind(n, *(w for w in words if "=" not in w), **named)
    except TypeError:
        takes = [str(p) for p in inspect.signature(function).parameters.values()][1:]
        names = ", ".join(part.partition(":")[0] for part in takes)
        raise RecipeError(
            f"the schedule {spec!r} has arguments that {name} does not take",
            f"It takes {names or 'none'}.",
        ) from None
    return tuple(function(n, *(w for w in words if "=" not in w), **named))


def _number(text: str, what: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise RecipeError(f"the {what} {text!r} is no number", "Write a number such as 0.2.") from (
            None
        )


def _list(names: object) -> str:
    return ", ".join(iter(names))  # type: ignore[call-overload]
