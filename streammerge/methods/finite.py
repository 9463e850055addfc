"""Whether a block holds NaN or Inf, and how large its elements are, at the speed of the cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

INFINITY_BITS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""The bits of infinity, for the dtypes that `largest_bits` takes."""
NO_SIGN = 0x7FFF


def largest_bits(tensor: Tensor) -> int:
    """Return the bits, without the sign, of the largest magnitude in a block of a 16-bit dtype.

    They grow with the magnitude; those of Inf and NaN are the largest. On a CPU two maxima tell,
    since the positive numbers are the largest of signed integers, the negative ones of unsigned
    (12 µs for 64 Ki elements in the cache; `torch.isfinite` takes 400).
    """
    bits = tensor.view(torch.int16)
    if tensor.numel() == 0:
        return 0
    if tensor.device.type != "cpu":
        return int((bits & NO_SIGN).amax())
    array = bits.numpy()
    return max(int(array.max()), int(array.view("uint16").max()) & NO_SIGN)


def all_finite(tensor: Tensor) -> bool:
    """Whether a block has neither NaN nor Inf; may say no where only the sum overflows."""
    limit = INFINITY_BITS.get(tensor.dtype)
    if limit is None:
        return math.isfinite(tensor.sum().item())
    return largest_bits(tensor) < limit


def count_nonfinite(tensor: Tensor) -> int:
    """Return the number of NaN and infinite elements."""
    return tensor.numel() - int(torch.isfinite(tensor).sum())
