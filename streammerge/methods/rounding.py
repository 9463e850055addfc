"""Correct rounding: from sums in fp32 or fp64 to 16 bits as if there had been one rounding.

A sum in fp32 that drops a tiny term can land on the midpoint of two bf16 numbers that the true sum
only comes near, and then rounds to the wrong side: about 1 element in 10⁷ for unrelated models
(docs/measurements.md). The same happens on the way from fp64 to 16 bits, which leads through fp32.
Both are rare and can be recognised, so the few elements in question are done again with care.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from streammerge.methods import Workspace

_MANTISSA = {torch.bfloat16: 7, torch.float16: 10}  # bits that are stored
_FP32_MANTISSA = 23
_FP16_SMALLEST_NORMAL = 0x38800000  # 2⁻¹⁴ as the bits of an fp32


def exponent_room(dtype: torch.dtype, weights: Sequence[float]) -> int:
    """Return how far the exponents of 16-bit inputs may lie apart for an exact sum in fp32.

    With integer weights every term is a multiple of the last place of the smallest input, and every
    partial sum is below Σ|wᵢ| times the largest; 24 bits hold the whole range between them.
    """
    span = int(sum(abs(weight) for weight in weights))
    return _FP32_MANTISSA - _MANTISSA[dtype] - (span - 1).bit_length()


def inexact_sums(
    tensors: Sequence[Tensor], weights: Sequence[float], workspace: Workspace
) -> Tensor | None:
    """Return the indices at which the fp32 sum may not be exact; None where there are none.

    Args:
        tensors: of one 16-bit dtype, flat and of equal length.
        weights: their integer weights.
        workspace: where temporaries come from.

    The bits of a float without its sign grow with its magnitude, so this compares integers. Zeros
    count as tiny numbers, which at worst costs time.
    """
    dtype, numel = tensors[0].dtype, tensors[0].numel()
    one, largest, smallest = (
        workspace.buffer(name, torch.int16, numel) for name in ("magnitude", "largest", "smallest")
    )
    torch.bitwise_and(tensors[0].view(torch.int16), 0x7FFF, out=largest)
    smallest.copy_(largest)
    for tensor in tensors[1:]:
        torch.bitwise_and(tensor.view(torch.int16), 0x7FFF, out=one)
        torch.maximum(largest, one, out=largest)
        torch.minimum(smallest, one, out=smallest)
    limit = exponent_room(dtype, weights) << _MANTISSA[dtype]
    apart = largest.sub_(smallest)
    return _where(apart, "gt", limit) if int(apart.amax()) > limit else None


def round_once(values: Tensor, out: Tensor, workspace: Workspace) -> None:
    """Round fp64 values to `out` by one rounding to nearest, ties to even.

    The cast to 16 bits leads through fp32. Where that lands between two 16-bit numbers by rounding,
    it is moved to its odd neighbour, from which the second rounding goes the right way (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    if out.dtype not in _MANTISSA:
        out.copy_(values)
        return
    single = workspace.buffer("single", torch.float32, values.numel()).copy_(values)
    suspects = _possible_ties(single, out.dtype, workspace)
    if suspects is not None:
        single[suspects] = _to_odd(single[suspects], values[suspects])
    out.copy_(single)


def _possible_ties(single: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor | None:
    bits = single.view(torch.int32)
    dropped = _FP32_MANTISSA - _MANTISSA[dtype]
    low = workspace.buffer("low bits", torch.int32, single.numel())
    torch.bitwise_and(bits, (1 << dropped) - 1, out=low)
    ties = _where(low, "eq", 1 << (dropped - 1))
    if dtype is torch.float16:  # its subnormal numbers drop more bits
        torch.bitwise_and(bits, 0x7FFFFFFF, out=low)
        ties = torch.cat([ties, _where(low, "lt", _FP16_SMALLEST_NORMAL)])
    return ties if ties.numel() else None


_COMPARE = {"gt": np.greater, "eq": np.equal, "lt": np.less}


def _where(integers: Tensor, comparison: str, limit: int) -> Tensor:
    """Return the indices of elements that compare so; on a CPU numpy's search is 8 times faster."""
    if integers.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(_COMPARE[comparison](integers.numpy(), limit)))
    found: Tensor = getattr(torch, comparison)(integers, limit).nonzero().squeeze(1)
    return found


def _to_odd(single: Tensor, values: Tensor) -> Tensor:
    """Return the fp32 neighbours of fp64 values: the exact one, or the one with an odd last bit."""
    bits = single.view(torch.int32)
    even = (single.double() != values) & (bits & 1 == 0)
    outwards = torch.where(single.double().abs() < values.abs(), 1, -1).to(torch.int32)
    return torch.where(even, bits + outwards, bits).view(torch.float32)
