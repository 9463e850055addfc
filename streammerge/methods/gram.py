"""The inner products of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streammerge import native
from streammerge.methods.measuring import Sums
from streammerge.stretch import Stretch

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.stretch import Flat


Select = Callable[[Sequence["Flat"], "Flat | None"], "tuple[Sequence[Flat], Flat | None]"]
"""Returns which of the models and the base model are vectors, and which the point that they start
from (None for zero)."""


class Gram(Sums):
    """The inner products of all pairs of vectors, in fp64.

    Args:
        select: tells the vectors and their origin.

    Attributes:
        matrix: symmetric, one row for each vector; after the round.
    """

    raw = True

    def __init__(self, select: Select) -> None:
        super().__init__(lambda tensors, base, place: products(*select(tensors, base)))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The products as a symmetric matrix."""
        count = (math.isqrt(8 * len(self.values) + 1) - 1) // 2
        matrix = np.zeros((count, count))
        matrix[np.triu_indices(count)] = self.values
        return np.triu(matrix) + np.triu(matrix, 1).T


def products(vectors: Sequence[Flat], origin: Flat | None) -> list[float]:
    """Return the inner products of all pairs, in the order of the upper triangle of their matrix.

    NaN and Inf, which are here only by the user's wish, count as nothing.

    Args:
        vectors, origin: flat and of equal length, on the CPU.
    """
    if not vectors:
        return []
    compute: Any = native.inner_products if isinstance(vectors[0], Stretch) else _products
    found: list[float] = compute(vectors, origin, False)
    return found if all(map(math.isfinite, found)) else compute(vectors, origin, True)


def _products(vectors: Sequence[Tensor], origin: Tensor | None, finite_only: bool) -> list[float]:
    """Do what `native.inner_products` does, in the same order."""
    arrays, found = [], []
    with np.errstate(invalid="ignore", over="ignore"):
        for vector in vectors:
            array = vector.double().numpy()
            array = array if origin is None else array - origin.double().numpy()
            array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0) if finite_only else array
            arrays.append(np.pad(array, (0, -len(array) % native.TILE)).reshape(-1, native.TILE))
        for a, b in combinations_with_replacement(arrays, 2):
            sums = np.add.reduce(a * b, axis=0)  # row by row
            while len(sums) > 1:
                sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
            found.append(float(sums[0]))
    return found


def along(axis: int, one: Tensor, other: Tensor) -> NDArray[np.float64]:
    """Return the inner products of the vectors of two matrices, along axis 0 or 1.

    NaN and Inf count as nothing, as above.

    Args:
        axis: that of the vectors; it stays, with length 1.
        one, other: of equal shape, in fp64 on the CPU.
    """
    a, b = one.numpy(), other.numpy()
    indices = "ij,ij->j" if axis == 0 else "ij,ij->i"
    found = np.einsum(indices, a, b, optimize=False)
    if not np.isfinite(found).all():
        a, b = (np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0) for x in (a, b))
        found = np.einsum(indices, a, b, optimize=False)
    return np.expand_dims(found, axis)
