"""The kernel of averages and linear combinations: Σ wᵢxᵢ / D, one division and one rounding.

Sums are in fp64. There they are exact for 16-bit inputs, unless those of an element lie some forty
binary orders apart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from streammerge import native
from streammerge.methods.finite import all_finite
from streammerge.methods.rounding import round_once
from streammerge.methods.weights import exact_weights, products_are_exact, quotient_in_fp32
from streammerge.methods.workspace import Workspace

MANTISSA_BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
"""Significant bits of each float dtype, the hidden one counted."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a weighted sum is computed.

    Attributes:
        weights: what each tensor is multiplied by.
        divisor: of the sum.
        in_fp32: where the sum fits into fp32, the quotient may be taken there (`weights`).
    """

    weights: Sequence[float]
    divisor: float = 1.0
    in_fp32: bool = False


def weighted_sum(
    tensors: Sequence[Tensor],
    out: Tensor,
    workspace: Workspace,
    weights: tuple[float | Fraction, ...],
    normalize: bool,
) -> bool:
    """Write Σ wᵢxᵢ, divided by Σ wᵢ if `normalize`; see `averages.average`."""
    terms = _exact_terms(weights, normalize, tuple(t.dtype for t in tensors), out.dtype)
    return sum_terms(tensors, out, workspace, terms)


@functools.lru_cache(maxsize=4096)
def _exact_terms(
    weights: tuple[float | Fraction, ...],
    normalize: bool,
    dtypes: tuple[torch.dtype, ...],
    out: torch.dtype,
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


def sum_terms(tensors: Sequence[Tensor], out: Tensor, workspace: Workspace, terms: Terms) -> bool:
    """Write Σ wᵢxᵢ / divisor; return whether all results are finite.

    Args:
        tensors: flat and of equal length, in any float dtypes; never written to.
        out: flat, and as long.
        workspace: where temporaries come from.
        terms: weights and divisor.
    """
    if native.serves((*tensors, out)):
        return native.weighted_sum(tensors, terms.weights, terms.divisor, terms.in_fp32, out)
    for block in workspace.blocks(out.numel(), torch.float64):
        inputs = [tensor[block] for tensor in tensors]
        total = workspace.buffer("sum", torch.float64, inputs[0].numel()).copy_(inputs[0])
        total.mul_(terms.weights[0])
        for tensor, weight in zip(inputs[1:], terms.weights[1:], strict=True):
            # Widened first: adding across dtypes is slower than both steps together.
            term = workspace.buffer("term", torch.float64, tensor.numel()).copy_(tensor)
            total.add_(term.mul_(weight))
        _divide(total, terms.divisor)
        round_once(total, out[block], workspace)
    return all_finite(out)


def _divide(total: Tensor, divisor: float) -> None:
    if math.frexp(divisor)[0] == 0.5:  # a power of two: exact, and faster than a division
        total.mul_(1 / divisor)
    elif total.device.type == "cpu":
        total.div_(divisor)
    else:  # by a Python number, other devices multiply with a rounded reciprocal
        total.div_(torch.tensor(divisor, dtype=total.dtype, device=total.device))
