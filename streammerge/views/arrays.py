"""Bytes as numbers: float elements of any dtype as numpy arrays, and aligned room to read into."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streammerge.storage import ALIGNMENT

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]

_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def decode(raw: bytes | memoryview, dtype: str) -> Floats:
    """Return the elements in bytes, exactly: as they are, or bf16 as fp32.

    Args:
        raw: little-endian elements.
        dtype: BF16, F16, F32 or F64.
    """
    if dtype != "BF16":
        return np.frombuffer(raw, _NUMPY[dtype])
    wide: NDArray[np.uint32] = np.frombuffer(raw, "<u2").astype("<u4")
    wide <<= 16
    return wide.view(np.float32)


def numpy_name(dtype: str) -> str:
    """Return what numpy calls a dtype code; F16, F32 or F64."""
    return _NUMPY[dtype]


def aligned_room(nbytes: int) -> memoryview:
    """Return memory for reads of up to `nbytes`, as `RangeReader.fetch` wants it."""
    memory = np.empty(nbytes + 3 * ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :].data
