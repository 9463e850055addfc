"""How much of a tensor a method sees at once: elements, whole rows, or a chunk of them."""

from __future__ import annotations

import math

from streammerge.methods.measuring import CHUNK
from streammerge.plan import Step


def row_length(shape: tuple[int, ...]) -> int:
    """Return the elements of a row: what lies along the last axis, or one filter of a convolution.

    A vector is one row.
    """
    if len(shape) <= 3:
        return shape[-1] if shape else 1
    return math.prod(shape[1:])


def unit_length(step: Step, shape: tuple[int, ...]) -> int:
    """Return how many elements of a tensor a method must see together."""
    return max(1, row_length(shape)) if step.granularity == "row" else 1


def chunk_length(step: Step, shape: tuple[int, ...]) -> int:
    """Return the elements of a chunk that is merged or measured at once: whole units.

    Each call on a chunk lets another thread have the interpreter, and waking it takes as long as a
    call on 64 Ki elements, so chunks are as long as the cache allows: with three models two threads
    merge 1.6 times as fast by 256 Ki elements as by 64 Ki (docs/measurements.md).
    """
    unit = unit_length(step, shape)
    if step.granularity == "row":
        return unit * max(1, CHUNK // 4 // unit)
    cached = 3 * CHUNK // max(1, len(step.sources))
    return min(CHUNK, max(CHUNK // 4, 1 << cached.bit_length() - 1))
