"""The exact weighted mean, rounded once: what every merge is held against.

Where float64 holds the weighted sum exactly (checked element by element with error-free sums),
the division is done in float64 and its remainder says on which side the exact quotient lies;
everything else is computed with fractions. The quotient is kept as float64 rounded to odd, which
can be rounded once more to any narrower format without a double rounding. (torch rounds float64
to bfloat16 through float32, which is wrong at ties.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

Doubles = npt.NDArray[np.float64]
Weight = float | int | str


def exact_mean(
    tensors: Sequence[torch.Tensor], weights: Sequence[Weight] | None, dtype: torch.dtype
) -> torch.Tensor:
    """Σ wᵢ·xᵢ / Σ wᵢ with exact arithmetic and one rounding to `dtype`."""
    shares = _integers([1] * len(tensors) if weights is None else weights)
    columns = [t.reshape(-1).double().numpy() for t in tensors]
    with np.errstate(all="ignore"):
        odd = _mean_to_odd(columns, shares)
    return round_once(odd, dtype).reshape(tensors[0].shape)


def _integers(weights: Sequence[Weight]) -> list[int]:
    """Decimal weights as the smallest integers in the same ratio, sign kept."""
    exact = [Fraction(Decimal(repr(w) if isinstance(w, float) else str(w))) for w in weights]
    scale = math.lcm(*(w.denominator for w in exact))
    whole = [int(w * scale) for w in exact]
    divisor = math.gcd(*whole)
    return [w // divisor for w in whole]


def _mean_to_odd(columns: list[Doubles], shares: list[int]) -> Doubles:
    total = sum(shares)
    if max(abs(total), *map(abs, shares)) >= 2**24:
        return _by_fractions(columns, shares, np.arange(columns[0].size), columns[0] * 0.0)
    result, error = _two_product(columns[0], shares[0])
    inexact = error != 0
    for column, share in zip(columns[1:], shares[1:], strict=True):
        term, lost = _two_product(column, share)
        result, error = _two_sum(result, term)
        inexact |= (lost != 0) | (error != 0)
    quotient = result / total
    product, error = _two_product(quotient, total)
    remainder = (result - product) - error  # exact: a division's remainder is a double
    beyond = np.sign(remainder) * np.sign(quotient) * np.sign(total)
    odd = _to_odd(quotient, beyond, exact=remainder == 0)
    largest = np.max(np.abs(columns), axis=0) if columns[0].size else columns[0]
    tiny = (np.abs(quotient) < 2.0**-900) & (result != 0)
    return _by_fractions(
        columns, shares, np.flatnonzero(inexact | tiny | (largest > 2.0**900)), odd
    )


def _two_product(column: Doubles, factor: int) -> tuple[Doubles, Doubles]:
    """column × factor and its rounding error, exactly (Veltkamp's split of the column)."""
    high = column * 134217729.0
    high = high - (high - column)
    low = column - high  # both halves have at most 27 bits, the factor 24: no rounding below
    product = column * float(factor)
    return product, (high * factor - product) + low * factor


def _two_sum(a: Doubles, b: Doubles) -> tuple[Doubles, Doubles]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _to_odd(value: Doubles, beyond: Doubles, exact: npt.NDArray[np.bool_]) -> Doubles:
    """Truncate toward zero, then make the last bit odd; `beyond` < 0: |value| is too large."""
    truncated = np.where(beyond < 0, np.nextafter(value, 0.0), value)
    odd = (truncated.view(np.uint64) | np.uint64(1)).view(np.float64)
    return np.where(exact | ~np.isfinite(value), value, odd)


def _by_fractions(
    columns: list[Doubles], shares: list[int], where: npt.NDArray[np.intp], result: Doubles
) -> Doubles:
    result, total = result.copy(), sum(shares)
    for i in where:
        values = [float(c[i]) for c in columns]
        if not all(map(math.isfinite, values)):
            continue
        exact = sum((s * Fraction(v) for s, v in zip(shares, values, strict=True)), Fraction(0))
        result[i] = _fraction_to_odd(exact / total)
    return result


def _fraction_to_odd(exact: Fraction) -> float:
    nearest = float(exact)
    if Fraction(nearest) == exact:
        return nearest
    if abs(Fraction(nearest)) > abs(exact):
        nearest = math.nextafter(nearest, 0.0)
    bits = np.array(nearest).view(np.uint64) | np.uint64(1)
    return float(bits.view(np.float64))


def round_once(odd: Doubles, dtype: torch.dtype) -> torch.Tensor:
    """Round doubles (rounded to odd) to nearest even in `dtype`, in one step."""
    with np.errstate(all="ignore"):
        if dtype == torch.bfloat16:
            return torch.from_numpy(_bfloat16_bits(odd)).view(torch.bfloat16)
        kinds: dict[torch.dtype, type[np.floating]] = {
            torch.float16: np.float16,
            torch.float32: np.float32,
        }
        return torch.from_numpy(odd.astype(kinds[dtype]))


def _bfloat16_bits(odd: Doubles) -> npt.NDArray[np.int16]:
    single = odd.astype(np.float32)
    exact = single.astype(np.float64) == odd
    single = np.where(np.abs(single) > np.abs(odd), np.nextafter(single, np.float32(0)), single)
    bits = np.where(exact, single.view(np.uint32), single.view(np.uint32) | np.uint32(1))
    bits = bits.astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)


def float64_mean(
    tensors: Sequence[torch.Tensor], weights: Sequence[int] | None = None
) -> torch.Tensor:
    """The mean of float64 tensors as the design states it: products, sums in order, one division.

    Sixty-four bits have no wider format to be held against, so the operations are the promise.
    """
    shares = [1] * len(tensors) if weights is None else list(weights)
    total = tensors[0].double() * shares[0]
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total = total + tensor.double() * share
    return total / torch.tensor(sum(shares), dtype=torch.float64)


def wrong_elements(found: torch.Tensor, expected: torch.Tensor) -> int:
    """How many elements differ in any bit (a NaN equals a NaN)."""
    same = _bits(found) == _bits(expected)
    both_nan = found.reshape(-1).isnan() & expected.reshape(-1).isnan()
    return int((~(same | both_nan)).sum())


def ulps_apart(found: torch.Tensor, expected: torch.Tensor) -> int:
    """The largest distance in steps of the format, zeros of either sign counted as one point."""
    steps = [torch.where(b < 0, _lowest(b) - b, b) for b in (_bits(found), _bits(expected))]
    return int((steps[0].long() - steps[1].long()).abs().max()) if found.numel() else 0


def _lowest(bits: torch.Tensor) -> int:
    return int(torch.iinfo(bits.dtype).min)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().reshape(-1).view(kind)
