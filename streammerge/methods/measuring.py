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
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.place import Place

CHUNK = 64 * 1024
"""Elements of a chunk; of whole rows, where a method works on rows, as many as fit."""


class Measurement(Protocol):
    """A measurement of one tensor, in one or more rounds over all of its chunks.

    Attributes:
        wide: chunks are to come in fp64, whatever the method computes in.
    """

    @property
    def wide(self) -> bool: ...

    def observe(self, tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> Any:
        """Return what one chunk contributes; called by several threads, so nothing may change.

        Args:
            tensors, base: as a method gets them; copies that may be overwritten.
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

    wide = False

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


_DIGIT = 16  # bits of a magnitude that a round decides


class Ranks:
    """Exact order statistics of magnitudes: the k-th largest |x|, by a radix select.

    The bits of a float without its sign grow with its magnitude. Each round counts 16 of them, from
    the highest, for the elements that agree with what the rounds before have found: two rounds for
    fp32, four for fp64, and no sort.

    Args:
        vectors: makes the vectors of a chunk from its tensors and base.
        wanted: pairs of a vector's index and a rank, 1 for the largest.

    Attributes:
        values: the magnitudes found, one for each pair; inf for a rank below 1.
    """

    wide = False

    def __init__(
        self,
        vectors: Callable[[Sequence[Tensor], Tensor | None], Sequence[Tensor]],
        wanted: Sequence[tuple[int, int]],
    ) -> None:
        self._vectors, self._wanted = vectors, list(wanted)
        self._ranks = [rank for _, rank in wanted]
        self._prefixes = [0] * len(wanted)
        self._known = 0  # bits that are decided
        self._bits = 0  # bits of a magnitude; 0 until the first chunk is seen
        self._counts: dict[tuple[int, int], NDArray[np.int64]] = {}
        self.values: list[float] = [math.inf] * len(wanted)

    def observe(
        self, tensors: Sequence[Tensor], base: Tensor | None, place: Place
    ) -> tuple[int, dict[tuple[int, int], NDArray[np.int64]]]:
        """Return the counts of the next digit, for each vector and prefix that is looked for."""
        vectors = self._vectors(tensors, base)
        bits = 8 * vectors[0].element_size() - 1
        shift, width = _digit(bits, self._known)
        counts = {}
        for vector, prefix in dict.fromkeys(self._sought()):
            keys = _magnitude_bits(vectors[vector])
            if self._known:
                keys = keys[keys >> (bits - self._known) == prefix]
            digits = (keys >> shift) & ((1 << width) - 1)
            counts[vector, prefix] = np.bincount(digits, minlength=1 << width)
        return bits, counts

    def _sought(self) -> list[tuple[int, int]]:
        return [
            (vector, prefix)
            for (vector, rank), prefix in zip(self._wanted, self._prefixes, strict=True)
            if rank >= 1
        ]

    def add(self, part: tuple[int, dict[tuple[int, int], NDArray[np.int64]]]) -> None:
        """Add the counts of a chunk."""
        self._bits, counts = part
        for key, count in counts.items():
            if key in self._counts:
                self._counts[key] += count
            else:
                self._counts[key] = count

    def another_round(self) -> bool:
        """Find the digit of each wanted magnitude; go on until all bits are known."""
        if not self._counts:  # an empty tensor, or nothing wanted
            return False
        _, width = _digit(self._bits, self._known)
        for index, (vector, rank) in enumerate(self._wanted):
            if rank < 1:
                continue
            counts = self._counts[vector, self._prefixes[index]]
            above = np.cumsum(counts[::-1])
            place = int(np.searchsorted(above, self._ranks[index]))
            place = min(place, len(counts) - 1)
            self._ranks[index] -= int(above[place] - counts[::-1][place])
            self._prefixes[index] = (self._prefixes[index] << width) | (len(counts) - 1 - place)
        self._counts = {}
        self._known += width
        if self._known < self._bits:
            return True
        kind: type[np.floating[Any]] = np.float32 if self._bits == 31 else np.float64
        integers = np.array(self._prefixes, np.uint32 if self._bits == 31 else np.uint64)
        self.values = [
            float(value) if rank >= 1 else math.inf
            for value, (_, rank) in zip(integers.view(kind), self._wanted, strict=True)
        ]
        return False


def _digit(bits: int, known: int) -> tuple[int, int]:
    """Return shift and width of the digit after the `known` highest bits."""
    width = min(_DIGIT, bits - known)
    return bits - known - width, width


def _magnitude_bits(tensor: Tensor) -> NDArray[np.signedinteger[Any]]:
    import torch

    integer = torch.int32 if tensor.dtype is torch.float32 else torch.int64
    array: NDArray[np.signedinteger[Any]] = tensor.reshape(-1).view(integer).numpy()
    return array & np.array(np.iinfo(array.dtype).max, array.dtype)


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
    def wide(self) -> bool:
        """What the present one wants."""
        return self._now.wide

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
