"""Averages: Σ wᵢxᵢ / Σ wᵢ, with one division and one cast at the end.

Model soups (arXiv:2203.05482), latest-weight averaging (arXiv:2306.03241).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from streammerge.methods import Workspace, merge_method
from streammerge.methods.rounding import inexact_sums, round_once

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
        elif weight == 1:
            self._sum.add_(tensor)
        elif self._exact:
            # A fused multiply-add, where the device has one, rounds once; so does adding an exact
            # product. The bits are the same with and without.
            self._sum.add_(tensor, alpha=weight)
        else:
            product = self._workspace.buffer("product", self._sum.dtype, tensor.numel())
            self._sum.add_(product.copy_(tensor).mul_(weight))
        self._empty = False

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


@merge_method("average", aliases=("linear", "weighted_average", "simple_average"))
def average(
    tensors: Sequence[Tensor],
    out: Tensor,
    workspace: Workspace,
    *,
    weights: Sequence[float],
    divisor: float,
    accumulator: torch.dtype,
    exact: bool,
) -> None:
    """Σ wᵢxᵢ / Σ wᵢ; see `Reduction` for the arguments."""
    if _is_plain_pair(tensors, out, weights, accumulator):
        # One pass instead of four, and the same bits: a + (b - a)/2 rounds like (a + b)/2 where
        # all three are finite, and the caller looks for what is not.
        torch.lerp(tensors[0], tensors[1], 0.5, out=out)
        return
    _weighted_mean(tensors, out, workspace, weights, divisor, accumulator, exact)
    if accumulator is torch.float32:
        again = inexact_sums(tensors, weights, workspace)
        if again is not None:
            few, mean = [tensor[again] for tensor in tensors], out[again]
            _weighted_mean(few, mean, workspace, weights, divisor, torch.float64, exact)
            out[again] = mean


def _weighted_mean(
    tensors: Sequence[Tensor],
    out: Tensor,
    workspace: Workspace,
    weights: Sequence[float],
    divisor: float,
    accumulator: torch.dtype,
    exact: bool,
) -> None:
    total = Accumulator(workspace.buffer("sum", accumulator, out.numel()), workspace, exact)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add(tensor, weight)
    total.mean(divisor, out)


def _is_plain_pair(
    tensors: Sequence[Tensor], out: Tensor, weights: Sequence[float], accumulator: torch.dtype
) -> bool:
    """Whether this is the mean of two 16-bit tensors of the output's dtype."""
    if len(tensors) != 2 or tuple(weights) != (1, 1) or accumulator is not torch.float32:
        return False
    return out.dtype in _HALF and tensors[0].dtype == tensors[1].dtype == out.dtype
