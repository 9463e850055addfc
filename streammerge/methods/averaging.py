"""The kernel of averages: Σ wᵢxᵢ / Σ wᵢ, with one division and one cast at the end."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from streammerge.methods.inexact import RoundingWatch
from streammerge.methods.rounding import Gathered, inexact_sums, mean_of_few, round_once
from streammerge.methods.weights import choose_accumulator, exact_weights
from streammerge.methods.workspace import Workspace

MANTISSA_BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
"""Significant bits of each float dtype, the hidden one counted."""
_MANY = 64 * 1024
_HALF = (torch.bfloat16, torch.float16)


class Accumulator:
    """The running weighted sum and the running weight; the mean is taken once, at the end.

    Rounding anything before the last step breaks exact ties, which are common: a running mean of
    16-bit models is wrong in 0.1–2.4 % of the elements (docs/measurements.md).

    Args:
        buffer: where the sum lies, fp32 or fp64.
        workspace: where a temporary comes from.
        exact: products of weights and elements are exact in the buffer's dtype.
    """

    def __init__(self, buffer: Tensor, workspace: Workspace, exact: bool) -> None:
        self._sum, self._workspace, self._exact = buffer, workspace, exact
        self._empty = True

    def add(self, tensor: Tensor, weight: float) -> None:
        """Add `weight · tensor`."""
        if self._empty:
            self._sum.copy_(tensor)
            if weight != 1:
                self._sum.mul_(weight)
            self._empty = False
            return
        # Widened first: adding across dtypes is slower than both steps together.
        wide = self._workspace.buffer("term", self._sum.dtype, tensor.numel()).copy_(tensor)
        if self._exact:
            # A fused multiply-add, where the device has one, rounds once; so does adding an exact
            # product. The bits are the same with and without.
            self._sum.add_(wide, alpha=weight)
        else:
            self._sum.add_(wide.mul_(weight))

    def mean(self, divisor: float, out: Tensor) -> None:
        """Divide the sum by the weights' sum and round the quotient to `out`."""
        if math.frexp(divisor)[0] == 0.5:  # a power of two: exact, and faster than a division
            self._sum.mul_(1 / divisor)
        elif self._sum.device.type == "cpu":
            self._sum.div_(divisor)
        else:  # by a Python number, other devices multiply with a rounded reciprocal
            self._sum.div_(torch.tensor(divisor, dtype=self._sum.dtype, device=self._sum.device))
        if self._sum.dtype is torch.float64:
            round_once(self._sum, out, self._workspace)
        else:
            out.copy_(self._sum)


def weighted_sum(
    tensors: Sequence[Tensor],
    out: Tensor,
    workspace: Workspace,
    weights: tuple[float | Fraction, ...],
    normalize: bool,
    wide: bool,
) -> None:
    """Write Σ wᵢxᵢ, divided by Σ wᵢ if `normalize`; see `averages.average`."""
    terms = _exact_terms(weights, normalize, tuple(t.dtype for t in tensors), out.dtype, wide)
    if _is_plain_pair(tensors, out, terms):
        # One pass instead of four, and the same bits: a + (b - a)/2 rounds like (a + b)/2 where
        # all three are finite, and the caller looks for what is not.
        torch.lerp(tensors[0], tensors[1], 0.5, out=out)
    else:
        _sum_blocks(tensors, out, workspace, terms)


@dataclass(frozen=True, slots=True)
class _Terms:
    """How a weighted sum is computed; weights and divisor are integers where `exact`."""

    weights: tuple[float, ...]
    divisor: float
    accumulator: torch.dtype
    exact: bool


@functools.lru_cache(maxsize=4096)
def _exact_terms(
    weights: tuple[float | Fraction, ...],
    normalize: bool,
    dtypes: tuple[torch.dtype, ...],
    out: torch.dtype,
    wide: bool,
) -> _Terms:
    whole = exact_weights(weights, normalize)
    bits = [MANTISSA_BITS[dtype] for dtype in dtypes]
    single, exact = choose_accumulator(whole, bits, MANTISSA_BITS[out])
    accumulator = torch.float32 if single and not wide else torch.float64
    if exact:
        return _Terms(tuple(whole.integers), whole.total, accumulator, True)
    unit = max(abs(weight) for weight in whole.integers)
    shares = tuple(float(Fraction(weight, unit)) for weight in whole.integers)
    return _Terms(shares, float(Fraction(whole.total, unit)), accumulator, False)


def _sum_blocks(
    tensors: Sequence[Tensor], out: Tensor, workspace: Workspace, terms: _Terms
) -> None:
    weights, divisor, accumulator = terms.weights, terms.divisor, terms.accumulator
    watch = RoundingWatch(out.device)
    again = functools.partial(_average_again, tensors, out, weights, divisor)
    inexact = Gathered(again, _MANY)
    for block in workspace.blocks(out.numel(), accumulator):
        inputs = [tensor[block] for tensor in tensors]
        buffer = workspace.buffer("sum", accumulator, inputs[0].numel())
        total = Accumulator(buffer, workspace, terms.exact)
        watch.start()
        for tensor, weight in zip(inputs, weights, strict=True):
            total.add(tensor, weight)
        rounded = watch.rounded()
        total.mean(divisor, out[block])
        if rounded and accumulator is torch.float32:
            inexact.add(inexact_sums(inputs, weights, workspace), block.start)
    inexact.settle()


def _average_again(
    tensors: Sequence[Tensor],
    out: Tensor,
    weights: Sequence[float],
    divisor: float,
    indices: Tensor,
) -> None:
    few = [tensor[indices] for tensor in tensors]
    out[indices] = mean_of_few(few, weights, divisor, out.dtype).to(out.device)


def _is_plain_pair(tensors: Sequence[Tensor], out: Tensor, terms: _Terms) -> bool:
    """Whether this is the mean of two 16-bit tensors of the output's dtype."""
    if (terms.weights, terms.divisor) != ((1, 1), 2) or terms.accumulator is not torch.float32:
        return False
    return out.dtype in _HALF and tensors[0].dtype == tensors[1].dtype == out.dtype
