"""Averages: Σ wᵢxᵢ / Σ wᵢ, with one division and one cast at the end.

Model soups (arXiv:2203.05482), latest-weight averaging (arXiv:2306.03241).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from streammerge.methods import Workspace, merge_method
from streammerge.methods.inexact import RoundingWatch
from streammerge.methods.rounding import inexact_sums, mean_of_few, round_once

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
    watch = RoundingWatch(out.device)
    again: list[Tensor] = []
    waiting = 0
    for block in workspace.blocks(out.numel(), accumulator):
        inputs = [tensor[block] for tensor in tensors]
        total = Accumulator(
            workspace.buffer("sum", accumulator, inputs[0].numel()), workspace, exact
        )
        watch.start()
        for tensor, weight in zip(inputs, weights, strict=True):
            total.add(tensor, weight)
        rounded = watch.rounded()
        total.mean(divisor, out[block])
        if rounded and accumulator is torch.float32:
            found = inexact_sums(inputs, weights, workspace)
            again.append(found + block.start)
            waiting += found.numel()
        # Few elements cost as much as many, so they are gathered over the blocks.
        if waiting > _MANY or (waiting and block.stop == out.numel()):
            _average_again(torch.cat(again), tensors, out, weights, divisor)
            again, waiting = [], 0


def _average_again(
    indices: Tensor,
    tensors: Sequence[Tensor],
    out: Tensor,
    weights: Sequence[float],
    divisor: float,
) -> None:
    few = [tensor[indices] for tensor in tensors]
    out[indices] = mean_of_few(few, weights, divisor, out.dtype).to(out.device)


def _is_plain_pair(
    tensors: Sequence[Tensor], out: Tensor, weights: Sequence[float], accumulator: torch.dtype
) -> bool:
    """Whether this is the mean of two 16-bit tensors of the output's dtype."""
    if len(tensors) != 2 or tuple(weights) != (1, 1) or accumulator is not torch.float32:
        return False
    return out.dtype in _HALF and tensors[0].dtype == tensors[1].dtype == out.dtype
