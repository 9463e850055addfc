"""Weights as exact rationals: decimals become integers with one common divisor.

Σ wᵢxᵢ / Σ wᵢ with integer wᵢ has exact products and a single division, so that the only roundings
are those of the sum, the quotient and the final cast. With 0.7 and 0.3 in fp32, 4909 of 2²¹ bf16
results are off; with 7 and 3, then a division by 10, none (docs/measurements.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction

from streammerge.errors import RecipeError

MANTISSA_BITS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
"""Significant bits of each float dtype, the hidden one counted."""
_SPREAD = 8  # inputs of one element may differ by this many binary orders and still sum exactly


@dataclass(frozen=True, slots=True)
class Weights:
    """Integer weights without a common factor, and their sum.

    Attributes:
        integers: one for each model; zero leaves a model out.
        total: their sum, never zero.
    """

    integers: tuple[int, ...]
    total: int

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The share of each model; they sum to 1."""
        return tuple(float(Fraction(weight, self.total)) for weight in self.integers)


def exact_weights(weights: Sequence[float | int | str | Fraction]) -> Weights:
    """Return weights as integers in the same proportion; decimals count as written.

    Raises:
        RecipeError: a weight is not a finite number, or they sum to zero.
    """
    fractions = []
    for weight in weights:
        try:  # repr of a float is the shortest decimal that stands for it: what the user wrote
            fractions.append(Fraction(repr(weight) if isinstance(weight, float) else weight))
        except (ValueError, OverflowError, ZeroDivisionError, TypeError):
            raise RecipeError(
                f"the weight {weight!r} is not a finite number", "Write weights such as 0.7 or 5."
            ) from None
    total = sum(fractions)
    if total == 0:
        shown = ", ".join(str(weight) for weight in weights)
        raise RecipeError(
            f"the weights {shown} sum to zero, so they have no average",
            "Give weights with another sum.",
        )
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * scale) for fraction in fractions]
    common = math.gcd(*integers) * (1 if total > 0 else -1)
    integers = [integer // common for integer in integers]
    return Weights(tuple(integers), sum(integers))


def choose_accumulator(
    weights: Sequence[int], dtypes: Collection[str], output: str
) -> tuple[str, bool]:
    """Return the dtype code of the running sum, and whether every product is exact in it.

    Args:
        weights: the integers.
        dtypes: float codes of the inputs.
        output: float code of the result.

    fp32 serves 16-bit inputs of one dtype with small weights and a 16-bit result: then all products
    are exact, and so are nearly all sums (`methods.rounding` sees to the others). All else is
    summed in fp64.
    """
    widest = max(abs(weight) for weight in weights).bit_length()
    span = (sum(abs(weight) for weight in weights) - 1).bit_length()
    bits = max(MANTISSA_BITS[dtype] for dtype in dtypes)
    alike = len(set(dtypes)) == 1 and max(bits, MANTISSA_BITS[output]) <= MANTISSA_BITS["F16"]
    if alike and bits + span + _SPREAD <= MANTISSA_BITS["F32"]:
        return "F32", True
    return "F64", bits + max(widest, span) <= MANTISSA_BITS["F64"]
