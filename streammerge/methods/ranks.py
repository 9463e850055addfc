"""Exact order statistics of magnitudes: the k-th largest |x| of a tensor that is never sorted.

The bits of a float without its sign, read as an integer, grow with its magnitude: that is the *key*
here. A sample of the tensor gives a bracket of keys that very likely holds the wanted one. The next
round counts what lies above the bracket and tallies what lies in it, which is about one element in
a hundred. If the wanted key is not there after all, further rounds look where it must be, so the
result is exact and does not depend on the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streammerge import native
from streammerge.stretch import Stretch, as_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.place import Place
    from streammerge.stretch import Flat

SAMPLE = 64 * 1024
"""Elements of the sample, at least; a smaller tensor is its own sample."""
_SIGMAS = 4  # how far the bracket reaches to both sides, in standard deviations of the sample
_DISTINCT = 32 * 1024  # different keys that a tally tells apart
_WAITING = 64 * 1024  # keys that a tally gathers before it counts them

Keys = NDArray[np.signedinteger[Any]]
Counts = NDArray[np.int64]
Vectors = Callable[[Sequence["Tensor"], "Tensor | None"], Sequence["Tensor"]]


class Ranks:
    """Exact order statistics of magnitudes; NaN counts as larger than everything.

    Args:
        wanted: pairs of a vector's index and a rank, 1 for the largest.
        numel: elements of the tensor.
        vectors: makes the vectors of a chunk from its tensors and base; None for the task vectors,
            in fp64.

    Attributes:
        values: the magnitudes found, one for each pair; inf for a rank below 1.
        every, raw: see `Measurement`.
    """

    def __init__(
        self, wanted: Sequence[tuple[int, int]], numel: int, vectors: Vectors | None = None
    ) -> None:
        self.every = max(1, numel // SAMPLE)
        if self.every > 1:
            self.every |= 1  # not always the same columns of a matrix
        self.raw = vectors is None
        self._vectors, self._numel = vectors, numel
        self._searches = [_Search(vector, min(rank, numel)) for vector, rank in wanted]
        self._sampling = True
        self._sample: dict[int, list[Keys]] = {}
        self.values: list[float] = [math.inf] * len(wanted)

    def observe(self, tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> Any:
        """Return the keys of a chunk's sample; or what each search finds in the chunk."""
        if self._vectors is None:
            assert base is not None
            if not self._sampling:
                return [
                    s.look_at(tensors[s.vector], base) if s.open else None for s in self._searches
                ]
            keys = {vector: _task_vector_keys(tensors[vector], base) for vector in self._needed()}
        else:
            made = self._vectors(tensors, base)
            keys = {vector: magnitude_keys(made[vector]) for vector in self._needed()}
        if not self._sampling:
            return [s.look(keys[s.vector]) if s.open else None for s in self._searches]
        # Rows come whole, though a sample was asked for.
        return {
            vector: key[:: self.every if len(key) == place.numel else 1].copy()
            for vector, key in keys.items()
        }

    def _needed(self) -> set[int]:
        return {search.vector for search in self._searches if search.open}

    def add(self, part: Any) -> None:
        """Keep the sample, or count what was found."""
        if self._sampling:
            for vector, keys in part.items():
                self._sample.setdefault(vector, []).append(keys)
            return
        for search, found in zip(self._searches, part, strict=True):
            if found is not None:
                search.count(*found)

    def another_round(self) -> bool:
        """Narrow every bracket; go on until all keys are known."""
        if self._sampling:
            self._guess()
        else:
            for search in self._searches:
                if search.open:
                    search.narrow()
        self._sampling, self._sample, self.every = False, {}, 1
        for index, search in enumerate(self._searches):
            if search.found is not None:
                self.values[index] = search.found
        return any(search.open for search in self._searches)

    def _guess(self) -> None:
        for search in self._searches:
            if search.vector not in self._sample:
                search.open = False  # nothing is wanted, or the tensor is empty
                continue
            sample = np.concatenate(self._sample[search.vector])
            sample.sort()
            search.guess(sample, self._numel)


class _Search:
    """The search for one key.

    Attributes:
        vector: index of the vector.
        open: whether it is still looked for.
        found: the magnitude; None until then.
    """

    def __init__(self, vector: int, rank: int) -> None:
        self.vector, self._rank = vector, rank
        self.open = rank >= 1
        self.found: float | None = None
        self._low = self._high = self._largest = 0
        self._above, self._tally = 0, Tally()

    def guess(self, sample: Keys, numel: int) -> None:
        """Choose the first bracket from a sorted sample; a complete sample has the answer."""
        size, share = len(sample), self._rank / numel
        self._largest = int(np.iinfo(sample.dtype).max)
        if size == numel:
            self._end(sample[size - self._rank])
            return
        margin = _SIGMAS * math.sqrt(size * share * (1 - share)) + 2
        low, high = math.floor(size * (1 - share) - margin), math.ceil(size * (1 - share) + margin)
        self._low = int(sample[low]) if low >= 0 else 0
        self._high = int(sample[high]) if high < size else self._largest

    def look_at(self, tensor: Flat, base: Flat) -> tuple[int, Keys, Counts]:
        """Do what `look` does with the keys of a task vector in fp64."""
        if isinstance(tensor, Stretch) and isinstance(base, Stretch):
            return native.keys_between(tensor, base, self._low, self._high)
        return self.look(_task_vector_keys(tensor, base))

    def look(self, keys: Keys) -> tuple[int, Keys, Counts]:
        """Return how many keys lie above the bracket; those in it, and how often each is there."""
        above, not_below = keys > self._high, keys >= self._low
        inside, counts = np.unique(keys[np.flatnonzero(above != not_below)], return_counts=True)
        return int(np.count_nonzero(above)), inside, counts

    def count(self, above: int, inside: Keys, counts: Counts) -> None:
        """Count what `look` returned for a chunk."""
        self._above += above
        self._tally.add(inside, counts)

    def narrow(self) -> None:
        """Find the key, or choose the next bracket, in which it is certain to lie."""
        keys, counts = self._tally.result()
        down = self._above + np.cumsum(counts[::-1])  # elements down to each key, from the top
        if self._rank <= self._above:
            self._low, self._high = self._high + 1, self._largest
        elif not len(down) or self._rank > down[-1]:
            self._low, self._high = 0, self._low - 1
        else:
            key = keys[::-1][np.searchsorted(down, self._rank)]
            if self._tally.shift == 0:
                self._end(key)
                return
            self._low = int(key) << self._tally.shift
            self._high = self._low + (1 << self._tally.shift) - 1
        self._above, self._tally = 0, Tally()

    def _end(self, key: np.signedinteger[Any]) -> None:
        kind: type[np.floating[Any]] = np.float32 if key.itemsize == 4 else np.float64
        self.found = float(np.array(key).view(kind))
        self.open = False


class Tally:
    """How often each key was seen, in bounded memory.

    Differences of 16-bit numbers have few distinct values. Where there are too many, low bits of
    the keys are dropped.

    Attributes:
        shift: the number of bits that were dropped.
    """

    def __init__(self) -> None:
        self.shift = 0
        self._keys: Keys | None = None
        self._counts: Counts = np.zeros(0, np.int64)
        self._waiting: list[tuple[Keys, Counts]] = []
        self._size = 0

    def add(self, keys: Keys, counts: Counts) -> None:
        """Count keys, in any order; one may come more than once."""
        self._waiting.append((keys, counts))
        self._size += len(keys)
        if self._size >= _WAITING:
            self._settle()

    def result(self) -> tuple[Keys, Counts]:
        """Return the keys without their dropped bits, rising, and their counts."""
        self._settle()
        if self._keys is None:
            return np.zeros(0, np.int32), self._counts
        return self._keys, self._counts

    def _settle(self) -> None:
        if not self._waiting:
            return
        known = [] if self._keys is None else [self._keys]
        new = [keys >> self.shift if self.shift else keys for keys, _ in self._waiting]
        every = np.concatenate([*known, *new])
        times = np.concatenate([self._counts, *(counts for _, counts in self._waiting)])
        order = np.argsort(every)
        self._waiting, self._size = [], 0
        keys, counts = _run_lengths(every[order], times[order])
        while len(keys) > _DISTINCT:
            self.shift += 1
            keys, counts = _run_lengths(keys >> 1, counts)
        self._keys, self._counts = keys, counts


def _run_lengths(keys: Keys, counts: Counts) -> tuple[Keys, Counts]:
    """Return the distinct ones of sorted keys, and the sum of the counts of each."""
    if not len(keys):
        return keys, counts
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(counts, starts)


def _task_vector_keys(tensor: Flat, base: Flat) -> Keys:
    """Return the keys of a task vector in fp64."""
    if isinstance(tensor, Stretch) and isinstance(base, Stretch):
        return _keys(native.difference(tensor.compact(), base.compact()))
    return magnitude_keys(as_tensor(tensor).double() - as_tensor(base).double())


def magnitude_keys(tensor: Tensor) -> Keys:
    """Return the keys of a tensor's elements, in its memory."""
    return _keys(tensor.reshape(-1).numpy())


def _keys(values: NDArray[np.floating[Any]]) -> Keys:
    keys: Keys = values.view(f"i{values.itemsize}")
    return np.bitwise_and(keys, np.array(np.iinfo(keys.dtype).max, keys.dtype), out=keys)
