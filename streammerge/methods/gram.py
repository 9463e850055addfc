"""The inner products of whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streammerge.methods.measuring import Sums

if TYPE_CHECKING:
    from torch import Tensor


class Gram(Sums):
    """The inner products of all pairs of vectors, in fp64.

    Args:
        vectors: makes the vectors of a chunk from its tensors and base.

    Attributes:
        matrix: symmetric, one row for each vector; after the round.
    """

    wide = True

    def __init__(
        self, vectors: Callable[[Sequence[Tensor], Tensor | None], Sequence[Tensor]]
    ) -> None:
        super().__init__(lambda tensors, base, place: products(vectors(tensors, base)))

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The products as a symmetric matrix."""
        count = (math.isqrt(8 * len(self.values) + 1) - 1) // 2
        matrix = np.zeros((count, count))
        matrix[np.triu_indices(count)] = self.values
        return np.triu(matrix) + np.triu(matrix, 1).T


def products(vectors: Sequence[Tensor]) -> list[float]:
    """Return the inner products of all pairs, in the order of the upper triangle of their matrix.

    NaN and Inf, which are here only by the user's wish, count as nothing.

    Args:
        vectors: of equal shape, in fp64 on the CPU.
    """
    arrays = [vector.reshape(-1).numpy() for vector in vectors]
    found = _products(arrays)
    if not all(map(math.isfinite, found)):
        found = _products([np.nan_to_num(a, nan=0.0, posinf=0.0, neginf=0.0) for a in arrays])
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


def _products(arrays: Sequence[NDArray[np.float64]]) -> list[float]:
    # numpy's own loop, compiled for any processor of a kind: its order of summation depends neither
    # on threads nor on alignment. BLAS would take half the time and promise neither.
    pairs = combinations_with_replacement(arrays, 2)
    return [float(np.einsum("i,i->", a, b, optimize=False)) for a, b in pairs]
