"""Correct rounding: from sums in fp32 or fp64 to 16 bits as if there had been one rounding.

A sum in fp32 that drops a tiny term can land on the midpoint of two bf16 numbers that the true sum
only comes near, and then rounds to the wrong side: about 1 element in 10⁷ for unrelated models
(docs/measurements.md). The same happens on the way from fp64 to 16 bits, which leads through fp32.
Both are rare and can be recognised, so the few elements in question are done again with care.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streammerge.methods.workspace import Workspace

MANTISSA = {torch.bfloat16: 7, torch.float16: 10}
"""Bits of a 16-bit dtype that are stored."""
NO_SIGN = 0x7FFF
_FP32_MANTISSA = 23
_MANY = 1024  # so many suspects are worth a closer look
_FP16_SMALLEST_NORMAL = 0x38800000  # 2⁻¹⁴ as the bits of an fp32


class Gathered:
    """Indices found block by block and handed on together, since few cost as much as many.

    Args:
        handle: called with them.
        most: so many are not kept waiting.
    """

    def __init__(self, handle: Callable[[Tensor], None], most: int) -> None:
        self._handle, self._most = handle, most
        self._found: list[Tensor] = []
        self._waiting = 0

    def add(self, found: Tensor, start: int) -> None:
        """Keep the indices found in a block that begins at `start`."""
        if found.numel():
            self._found.append(found + start)
            self._waiting += found.numel()
            if self._waiting > self._most:
                self.settle()

    def settle(self) -> None:
        """Hand on what is still waiting."""
        if self._found:
            together = torch.cat(self._found)
            self._found, self._waiting = [], 0
            self._handle(together)


def exponent_room(dtype: torch.dtype, weights: Sequence[float]) -> int:
    """Return how far the exponents of 16-bit inputs may lie apart for an exact sum in fp32.

    With integer weights every term is a multiple of the last place of the smallest input, and every
    partial sum is below Σ|wᵢ| times the largest; 24 bits hold the whole range between them.
    """
    span = int(sum(abs(weight) for weight in weights))
    return _FP32_MANTISSA - MANTISSA[dtype] - (span - 1).bit_length()


def inexact_sums(
    tensors: Sequence[Tensor], weights: Sequence[float], workspace: Workspace
) -> Tensor:
    """Return the indices at which the fp32 sum may not be exact.

    Args:
        tensors: of one 16-bit dtype, flat and of equal length.
        weights: their integer weights.
        workspace: where temporaries come from.

    The bits of a float without its sign grow with its magnitude, so integers are compared: first
    the smallest input of each element with the largest of the block, then, where that leaves many,
    with the largest of the same element.
    """
    numel, on_cpu = tensors[0].numel(), tensors[0].device.type == "cpu"
    xp: Any = np if on_cpu else torch  # on a CPU numpy's integers are nearly twice as fast
    # In the memory of the sum, which is done with and still in the cache.
    scratch = workspace.buffer("sum", torch.float32, numel).view(torch.int16)
    smallest, magnitude = (as_array(part, on_cpu) for part in (scratch[:numel], scratch[numel:]))
    xp.bitwise_and(as_array(tensors[0].view(torch.int16), on_cpu), NO_SIGN, out=smallest)
    largest = int(smallest.max())
    for tensor in tensors[1:]:
        xp.bitwise_and(as_array(tensor.view(torch.int16), on_cpu), NO_SIGN, out=magnitude)
        largest = max(largest, int(magnitude.max()))
        xp.minimum(smallest, magnitude, out=smallest)
    room = exponent_room(tensors[0].dtype, weights) << MANTISSA[tensors[0].dtype]
    if int(smallest.min()) >= largest - room:
        return torch.empty(0, dtype=torch.int64, device=tensors[0].device)
    suspect = workspace.buffer("suspect", torch.bool, numel)
    xp.less(smallest, largest - room, out=as_array(suspect, on_cpu))
    found = indices(suspect)
    if found.numel() > _MANY:
        found = found[_far_apart([tensor[found] for tensor in tensors], room)]
    return found


def as_array(tensor: Tensor, on_cpu: bool) -> Any:
    """Return the memory as numpy's on a CPU, whose functions of integers are much faster."""
    return tensor.numpy() if on_cpu else tensor


def indices(mask: Tensor) -> Tensor:
    """Return where a mask is set; on a CPU numpy's search is 8 times as fast as torch's."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def _far_apart(tensors: Sequence[Tensor], room: int) -> Tensor:
    """Return where the largest and the smallest input that is not zero are too far apart."""
    magnitudes = torch.stack([tensor.view(torch.int16) & NO_SIGN for tensor in tensors])
    largest = magnitudes.amax(dim=0)
    smallest = torch.where(magnitudes == 0, largest, magnitudes).amin(dim=0)
    return (largest - smallest > room).nonzero().squeeze(1)


def mean_of_few(
    tensors: Sequence[Tensor], weights: Sequence[float], divisor: float, dtype: torch.dtype
) -> Tensor:
    """Return Σ wᵢxᵢ / divisor of a few elements on the CPU, in fp64 and rounded once to 16 bits."""
    total = tensors[0].double().cpu().numpy() * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += tensor.double().cpu().numpy() * weight
    return torch.from_numpy(_to_odd(total / divisor)).to(dtype)


def round_once(values: Tensor, out: Tensor, workspace: Workspace) -> None:
    """Round fp64 values to `out` by one rounding to nearest, ties to even.

    The cast to 16 bits leads through fp32. Where that lands between two 16-bit numbers by rounding,
    it is moved to its odd neighbour, from which the second rounding goes the right way (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    if out.dtype not in MANTISSA:
        out.copy_(values)
        return
    single = workspace.buffer("single", torch.float32, values.numel()).copy_(values)
    suspects = _possible_ties(single, out.dtype, workspace)
    if suspects is not None:
        odd = torch.from_numpy(_to_odd(values[suspects].cpu().numpy()))
        single[suspects] = odd.to(single.device)
    out.copy_(single)


def _possible_ties(single: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor | None:
    bits = single.view(torch.int32)
    dropped = _FP32_MANTISSA - MANTISSA[dtype]
    low = workspace.buffer("low bits", torch.int32, single.numel())
    torch.bitwise_and(bits, (1 << dropped) - 1, out=low)
    ties = torch.eq(low, 1 << (dropped - 1), out=workspace.buffer("ties", torch.bool, low.numel()))
    if dtype is torch.float16:  # its subnormal numbers drop more bits
        ties |= torch.bitwise_and(bits, 0x7FFFFFFF, out=low) < _FP16_SMALLEST_NORMAL
    found = indices(ties)
    return found if found.numel() else None


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the fp32 neighbours of fp64 values: the exact one, or the one with an odd last bit."""
    single = values.astype(np.float32)
    bits = single.view(np.int32)
    even = (single != values) & (bits & 1 == 0)
    outwards = np.where(np.abs(single) < np.abs(values), np.int32(1), np.int32(-1))
    return np.where(even, bits + outwards, bits).view(np.float32)
