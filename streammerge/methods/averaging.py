"""The kernel of averages and linear combinations: Σ wᵢxᵢ / D, one division and one rounding.

Sums are in fp64. There they are exact for 16-bit inputs, unless those of an element lie some forty
binary orders apart. Compiled loops try fp32 first, and keep what is seen to be exact.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, cast

from streammerge import native
from streammerge.methods.weights import exact_weights, products_are_exact, quotient_in_fp32
from streammerge.methods.workspace import Workspace
from streammerge.stretch import Stretch, code_of

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.stretch import Flat

MANTISSA_BITS = {"BF16": 8, "F16": 11, "F32": 24, "F64": 53}
"""Significant bits of each float dtype, the hidden one counted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a weighted sum is computed.

    Attributes:
        weights: what each tensor is multiplied by.
        divisor: of the sum.
        in_fp32: where the sum is exact in fp32, the quotient may be taken there (`weights`).
    """

    weights: Sequence[float]
    divisor: float = 1.0
    in_fp32: bool = False


def weighted_sum(
    flats: Sequence[Flat],
    out: Flat,
    workspace: Workspace,
    weights: tuple[float | Fraction, ...],
    normalize: bool,
) -> bool:
    """Write Σ wᵢxᵢ, divided by Σ wᵢ if `normalize`; see `averages.average`."""
    terms = _exact_terms(weights, normalize, tuple(map(code_of, flats)), code_of(out))
    return sum_terms(flats, out, workspace, terms)


@functools.lru_cache(maxsize=4096)
def _exact_terms(
    weights: tuple[float | Fraction, ...],
    normalize: bool,
    dtypes: tuple[str, ...],
    out: str,
) -> Terms:
    """Return integers as weights where all products with them are exact, otherwise shares of 1."""
    whole = exact_weights(weights, normalize)
    bits = [MANTISSA_BITS[dtype] for dtype in dtypes]
    if products_are_exact(whole, bits):
        in_fp32 = quotient_in_fp32(whole, bits, MANTISSA_BITS[out])
        return Terms(tuple(map(float, whole.integers)), float(whole.total), in_fp32)
    unit = max(abs(weight) for weight in whole.integers)
    shares = tuple(float(Fraction(weight, unit)) for weight in whole.integers)
    return Terms(shares, float(Fraction(whole.total, unit)))


def sum_terms(flats: Sequence[Flat], out: Flat, workspace: Workspace, terms: Terms) -> bool:
    """Write Σ wᵢxᵢ / divisor; return whether all results are finite.

    Args:
        flats: of equal length, in any float dtypes; never written to.
        out: as long; a stretch where they are stretches.
        workspace: where temporaries come from.
        terms: weights and divisor.
    """
    if isinstance(out, Stretch):
        stretches = cast(Sequence[Stretch], flats)
        return native.weighted_sum(stretches, terms.weights, terms.divisor, terms.in_fp32, out)
    from streammerge.methods import by_torch

    return by_torch.sum_terms(cast("Sequence[Tensor]", flats), out, workspace, terms)
