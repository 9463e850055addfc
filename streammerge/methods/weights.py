"""Weights as exact rationals: decimals become integers with one common divisor.

Σ wᵢxᵢ / Σ wᵢ with integer wᵢ has exact products and a single division, so that the only roundings
are those of the sum, the quotient and the final cast. With 0.7 and 0.3 in fp32, 4909 of 2²¹ bf16
results are off; with 7 and 3, then a division by 10, none (docs/measurements.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from streammerge.errors import RecipeError

_HALF, _SINGLE, _DOUBLE = 11, 24, 53  # significant bits of fp16, fp32 and fp64
_SPREAD = 8  # inputs of one element may differ by this many binary orders and still sum exactly


@dataclass(frozen=True, slots=True)
class Weights:
    """Integer weights, and the divisor of their weighted sum, without a common factor.

    Attributes:
        integers: one for each model; zero leaves a model out.
        total: what the weighted sum is divided by, never zero.
    """

    integers: tuple[int, ...]
    total: int

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The share of each model; they sum to 1."""
        return tuple(float(Fraction(weight, self.total)) for weight in self.integers)


def as_written(number: float | int | str | Fraction) -> Fraction:
    """Return a number exactly; a float as the shortest decimal that stands for it.

    Raises:
        ValueError, OverflowError, ZeroDivisionError, TypeError: it is not a finite number.
    """
    return Fraction(repr(number) if isinstance(number, float) else number)


def exact_weights(
    weights: Sequence[float | int | str | Fraction], normalize: bool = True
) -> Weights:
    """Return weights as integers in the same proportion; decimals count as written.

    Args:
        weights: one for each model.
        normalize: whether the weighted sum is divided by their sum; otherwise `total` is what
            makes the weights integers.

    Raises:
        RecipeError: a weight is not a finite number, or they sum to zero and are normalized.
    """
    fractions = []
    for weight in weights:
        try:
            fractions.append(as_written(weight))
        except (ValueError, OverflowError, ZeroDivisionError, TypeError):
            raise RecipeError(
                f"the weight {weight!r} is not a finite number", "Write weights such as 0.7 or 5."
            ) from None
    total = sum(fractions) if normalize else Fraction(1)
    if total == 0:
        shown = ", ".join(str(weight) for weight in weights)
        raise RecipeError(
            f"the weights {shown} sum to zero, so they have no average",
            "Give weights with another sum.",
        )
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * scale) for fraction in fractions]
    common = math.gcd(*integers) * (1 if total > 0 else -1)
    if not any(integers):
        return Weights(tuple(integers), 1)
    if not normalize:
        common = math.gcd(common, scale)
        return Weights(tuple(integer // common for integer in integers), scale // common)
    integers = [integer // common for integer in integers]
    return Weights(tuple(integers), sum(integers))


def products_are_exact(weights: Weights, inputs: Sequence[int]) -> bool:
    """Return whether fp64 holds every product of a weight and an element.

    Args:
        weights: the integers and the divisor.
        inputs: significant bits of each input's dtype.
    """
    widest = max(abs(weight) for weight in weights.integers).bit_length()
    return max(inputs) + max(widest, _span(weights)) <= _DOUBLE


def quotient_in_fp32(weights: Weights, inputs: Sequence[int], output: int) -> bool:
    """Return whether a sum that fits into fp32 may be divided there, with the same result.

    That holds for 16-bit inputs of one dtype with small weights, and a 16-bit result. With S and
    D·T both multiples of the last place of S, S/D is either the midpoint T of two results or
    further from it than fp32 rounds.

    Args:
        weights, inputs: as for `products_are_exact`.
        output: significant bits of the result's dtype.
    """
    bits = max(inputs)
    alike = len(set(inputs)) == 1 and max(bits, output) <= _HALF
    return alike and bits + _span(weights) + _SPREAD <= _SINGLE


def _span(weights: Weights) -> int:
    """Return how many bits a sum, or the divisor times a result, has more than an element."""
    largest = max(sum(abs(weight) for weight in weights.integers), weights.total)
    return (largest - 1).bit_length()
