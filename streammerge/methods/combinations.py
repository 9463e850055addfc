"""Linear combinations of whole tensors, with coefficients that follow from their inner products.

What happens on the sphere, or in the plane of a few points, depends only on the angles and lengths
between the points. So one pass measures the matrix of inner products (the Gram matrix), the
coefficients are found with a few numbers in fp64, and a second pass sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from streammerge.methods.gram import Gram, Select
from streammerge.methods.parameters import Bounds

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
Count = Annotated[int, Bounds(1, 10_000)]
"""How many steps an iteration may take."""
Tolerance = Annotated[float, Bounds(0, 1, open_low=True)]
"""What an iteration counts as nothing."""
Solve = Callable[[Matrix, Mapping[str, Any]], Sequence[float]]
"""Returns a coefficient for each vector from their Gram matrix and the method's parameters."""


def absolute(tensors: Sequence[Flat], base: Flat | None) -> tuple[Sequence[Flat], Flat | None]:
    """The models as they are, the base model first if there is one."""
    return ([base, *tensors] if base is not None else tensors), None


def from_base(tensors: Sequence[Flat], base: Flat | None) -> tuple[Sequence[Flat], Flat | None]:
    """The task vectors if there is a base model, otherwise the models."""
    return tensors, base


def from_first(tensors: Sequence[Flat], base: Flat | None) -> tuple[Sequence[Flat], Flat | None]:
    """The differences of the other models to the first."""
    return tensors[1:], tensors[0]


class Combination(Gram):
    """The coefficients of a linear combination of a tensor's vectors.

    Args:
        select: tells the vectors and their origin.
        solve: finds the coefficients.
        parameters: of the method.

    Attributes:
        coefficients: one for each vector, once the tensor has been seen.
    """

    def __init__(self, select: Select, solve: Solve, parameters: Mapping[str, Any]) -> None:
        super().__init__(select)
        self._select, self._solve, self._parameters = select, solve, parameters
        self.coefficients: Sequence[float] = ()

    def another_round(self) -> bool:
        """Solve for the coefficients."""
        super().another_round()
        if self.values:
            self.coefficients = self._solve(self.matrix, self._parameters)
        return False

    def write(
        self,
        tensors: Sequence[Flat],
        base: Flat | None,
        out: Flat | None,
        workspace: Workspace | None,
    ) -> bool:
        """Write the combination of a stretch: o + Σ cᵢ(vᵢ − o), which is (1 − Σ cᵢ)o + Σ cᵢvᵢ.

        Returns:
            whether all results are finite.
        """
        from streammerge.methods.averaging import Terms, sum_terms

        assert out is not None
        assert workspace is not None
        vectors, origin = self._select(tensors, base)
        shares = list(map(float, self.coefficients))
        if origin is None:
            return sum_terms(vectors, out, workspace, Terms(shares))
        rest = math.fsum([1.0, *(-share for share in shares)])
        return sum_terms([*vectors, origin], out, workspace, Terms([*shares, rest]))


def differences(vectors: Sequence[Tensor], origin: Tensor | None) -> Sequence[Tensor]:
    """Return what leads from the origin to each vector, in the memory of the vectors."""
    return vectors if origin is None else [vector.sub_(origin) for vector in vectors]


def combine(vectors: Sequence[Tensor], origin: Tensor | None, shares: Sequence[Any]) -> Tensor:
    """Return origin + Σ cᵢvᵢ of vectors that lead from there, in their memory."""
    terms = [vector.mul_(share) for vector, share in zip(vectors, shares, strict=True)]
    if origin is not None:
        terms.append(origin)
    total = terms[0]
    for term in terms[1:]:
        total = total.add_(term)
    return total


def combination(
    select: Select, solve: Solve
) -> Callable[[int, tuple[int, ...], Mapping[str, Any]], Combination]:
    """Return what makes the measurement of a method that is a combination."""
    return lambda models, shape, parameters: Combination(select, solve, parameters)


def lengths(gram: Matrix) -> Vector:
    """Return the Euclidean length of each vector."""
    return np.sqrt(np.maximum(np.diag(gram), 0.0))


def between(cosine: float, t: float) -> tuple[float, float]:
    """Return the shares of two vectors on the arc between them, t of the way."""
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
