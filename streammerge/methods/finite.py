"""Whether a block holds NaN or Inf, and how large its elements are, at the speed of the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streammerge.stretch import Stretch, code_of

if TYPE_CHECKING:
    from streammerge.stretch import Flat

_INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000, "F64": 0x7FF0_0000_0000_0000}
"""The bits of infinity."""


def largest_bits(flat: Flat) -> int:
    """Return the bits, without the sign, of the largest magnitude in a block; 0 for none.

    They grow with the magnitude; those of Inf and NaN are the largest. On a CPU two maxima tell,
    since the positive numbers are the largest of signed integers, the negative ones of unsigned
    (12 µs for 64 Ki elements in the cache; `torch.isfinite` takes 400).
    """
    if flat.numel() == 0:
        return 0
    array = _array(flat)
    if array is None:
        return _largest_on_device(flat)
    unsigned = array.view(f"u{array.itemsize}")
    return max(int(array.max()), int(unsigned.max()) & int(np.iinfo(array.dtype).max))


def are_finite(largest: int, dtype: str) -> bool:
    """Whether a block is without NaN and Inf, given its `largest_bits` and its dtype."""
    return largest < _INFINITY[dtype]


def all_finite(flat: Flat) -> bool:
    """Whether a block has neither NaN nor Inf."""
    return are_finite(largest_bits(flat), code_of(flat))


def count_nonfinite(stretch: Stretch) -> int:
    """Return the number of NaN and infinite elements."""
    magnitude = np.bitwise_and(stretch.bits, np.iinfo(stretch.bits.dtype).max)
    return int(np.count_nonzero(magnitude >= _INFINITY[stretch.dtype]))


def _array(flat: Flat) -> Any:
    """Return the bits as signed integers; None for what lies on a device."""
    if isinstance(flat, Stretch):
        return flat.bits
    return Stretch.of_tensor(flat).bits if flat.device.type == "cpu" else None


def _largest_on_device(tensor: Any) -> int:
    import torch

    signed = getattr(torch, f"int{8 * tensor.dtype.itemsize}")
    return int((tensor.view(signed) & torch.iinfo(signed).max).amax())
