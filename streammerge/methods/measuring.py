"""What a method has to know of a whole tensor before it merges the first block of it.

A measurement sees the tensor chunk by chunk, in any order and by several threads at once, as often
as it asks for; so a method that needs a norm, an inner product or a threshold keeps the memory
budget like any other. Chunks are cut from the start of the tensor, always alike, and what they
give is put together exactly (integers, or `math.fsum`): the result depends on no block size and no
order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.place import Place

CHUNK = 256 * 1024
"""Elements of a chunk, at most; fewer where there are many models (`chunks.chunk_length`)."""


class Measurement(Protocol):
    """A measurement of one tensor, in one or more rounds over all of its chunks."""

    @property
    def every(self) -> int:
        """How far apart the elements lie that this round needs; 1 for all of them.

        Where a method takes any elements, a chunk then holds every so many-th of its elements
        only, and its place still tells all of them.
        """

    @property
    def raw(self) -> bool:
        """Whether chunks are to come as they were read, flat, and not to be written to."""

    def observe(self, tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> Any:
        """Return what one chunk contributes; called by several threads, so nothing may change.

        Args:
            tensors, base: copies in the dtype of the computation that may be overwritten; unless
                they are `raw`.
            place: where the chunk lies.
        """

    def add(self, part: Any) -> None:
        """Take what `observe` returned; called by one thread at a time, in any order."""

    def another_round(self) -> bool:
        """End a round, all chunks having been seen; return whether there has to be another."""


Make = Callable[[int, tuple[int, ...], Mapping[str, Any]], Measurement]
"""Makes the measurement of a tensor from the number of models, its shape and the parameters."""


class Sums:
    """Exact sums over a tensor of numbers that are computed chunk by chunk.

    Args:
        terms: returns the numbers of a chunk, always as many.

    Attributes:
        values: the sums; one fp64 for each number.
    """

    every, raw = 1, False

    def __init__(
        self, terms: Callable[[Sequence[Tensor], Tensor | None, Place], Sequence[float]]
    ) -> None:
        self._terms = terms
        self._parts: list[Sequence[float]] = []
        self.values: list[float] = []

    def observe(
        self, tensors: Sequence[Tensor], base: Tensor | None, place: Place
    ) -> Sequence[float]:
        """Return the numbers of a chunk."""
        return self._terms(tensors, base, place)

    def add(self, part: Sequence[float]) -> None:
        """Keep them."""
        self._parts.append(part)

    def another_round(self) -> bool:
        """Sum them; one round is enough."""
        self.values = [_exact_sum(column) for column in zip(*self._parts, strict=True)]
        self._parts = []
        return False


def _exact_sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # an infinite sum, or both infinities in it
        return math.nan


def finite_sum(values: Tensor) -> float:
    """Return the sum of fp64 numbers of a chunk; those that are NaN or Inf count as nothing.

    The bits depend on neither the processor nor the number of threads.
    """
    array = values.reshape(-1).numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        total = float(array.sum())
        if not math.isfinite(total):
            total = float(np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0).sum())
    return total


class InTurn:
    """Measurements one after the other, each made when those before it are finished.

    Args:
        first: the first of them.
        makes: make the others from those that are finished.

    Attributes:
        done: the finished ones, in order.
    """

    def __init__(
        self, first: Measurement, *makes: Callable[[list[Measurement]], Measurement]
    ) -> None:
        self._now, self._makes = first, list(makes)
        self.done: list[Measurement] = []

    @property
    def every(self) -> int:
        """What the present one needs."""
        return self._now.every

    @property
    def raw(self) -> bool:
        """What the present one needs."""
        return self._now.raw

    def observe(self, tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> Any:
        """Return what the present one wants of a chunk."""
        return self._now.observe(tensors, base, place)

    def add(self, part: Any) -> None:
        """Give it to the present one."""
        self._now.add(part)

    def another_round(self) -> bool:
        """Go on with the present one, then with the next."""
        if self._now.another_round():
            return True
        self.done.append(self._now)
        if not self._makes:
            return False
        self._now = self._makes.pop(0)(self.done)
        return True
