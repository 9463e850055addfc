"""Methods on the singular values of task matrices; what is not a matrix is averaged.

A matrix is a tensor of two axes, as in the authors' code: norms, biases, convolutions and stacked
experts are averaged, θ₀ + λ·mean(δᵢ), in blocks like any other tensor. Matrices are needed whole.

The factors are computed in fp64. LAPACK's small singular directions are as far off as its rounding
is of the smallest singular value, and here those count as much as the others. For the same reason
directions without any extent, below max(m, n) · 2⁻⁵² of the largest, are left out: LAPACK returns
some basis of what the models do not touch, the papers do not say which, and it would be noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from streammerge.methods import Granularity, merge_method
from streammerge.methods.combining import task_vectors
from streammerge.methods.parameters import Alias, Bounds, Lambda

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Bounds(0, 1)]
_EPS = 2.0**-52


def _memory(shape: tuple[int, ...], models: int) -> int:
    """Return the bytes of factors, sums and LAPACK's room, which were measured."""
    rows, columns = shape
    rank = min(rows, columns)
    svd = 3 * rows * columns + 5 * rank**2
    kept = rows * columns + rank**2
    return 8 * (svd + kept)


def _granularity(parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Granularity:
    return "tensor" if len(shape) == 2 else "element"


def _on_matrices(
    tensors: Sequence[Tensor],
    base: Tensor,
    scale: float,
    merge: Callable[[Sequence[Tensor]], Tensor],
) -> Tensor:
    """Return θ₀ + λ·merge(task matrices), or θ₀ + λ·mean for what is not a matrix.

    NaN and Inf, which are here only by the user's wish, stay where they are and count as nothing
    elsewhere.
    """
    import torch

    deltas = task_vectors(tensors, base)
    if base.dim() != 2 or not base.numel():
        return _sum(deltas).div_(len(deltas)).mul_(scale).add_(base)
    if all(math.isfinite(float(delta.sum())) for delta in deltas):
        return merge(deltas).mul_(scale).add_(base)
    bad = torch.stack(list(deltas)).isfinite().all(dim=0).logical_not_()
    merged = merge([delta.masked_fill_(bad, 0) for delta in deltas])
    return merged.mul_(scale).add_(base).masked_fill_(bad, torch.nan)


def _sum(matrices: Sequence[Tensor]) -> Tensor:
    """Return the sum, in the memory of the first."""
    total = matrices[0]
    for matrix in matrices[1:]:
        total += matrix
    return total


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, the singular values and Vᵀ."""
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return UVᵀ for the SVD UΣVᵀ, without directions that have no extent.

    It is the nearest matrix whose columns, or rows if there are fewer, are orthonormal.
    """
    left, values, right = _svd(matrix)
    return left[:, : _rank(values, matrix)] @ right[: _rank(values, matrix)]


def _rank(values: Tensor, matrix: Tensor) -> int:
    """Return how many singular values are more than rounding errors."""
    return int((values > max(matrix.shape) * _EPS * values[0]).sum())


class _Factors:
    """Singular triples from several matrices, side by side.

    Args:
        like: a matrix of their shape, m × n.
        count: how many triples there is room for.
    """

    def __init__(self, like: Tensor, count: int) -> None:
        self._left = like.new_zeros(like.shape[0], count)
        self._values = like.new_zeros(count)
        self._right = like.new_zeros(count, like.shape[1])
        self._taken = 0

    def take(self, triples: tuple[Tensor, Tensor, Tensor], count: int) -> Tensor:
        """Copy the first of some triples; return their left directions, m × count."""
        left, values, right = triples
        place = slice(self._taken, self._taken + count)
        self._left[:, place] = left[:, :count]
        self._values[place] = values[:count]
        self._right[place] = right[:count]
        self._taken += count
        return self._left[:, place]

    def merged(self, equal: bool) -> Tensor:
        """Return U⊥ΣV⊥ᵀ with orthogonal directions, all values being their mean if `equal`."""
        left = _orthogonal(self._left)
        left *= self._values.mean() if equal else self._values
        return left @ _orthogonal(self._right)


@merge_method(
    "iso_c",
    aliases=("isotropic_merging/iso_c",),
    granularity=_granularity,
    memory=_memory,
    paper="2502.04959",
)
def iso_c(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    scaling_factor: Lambda = 1.0,
) -> Tensor:
    """Iso-C: the sum of the task matrices with all singular values made equal to their mean.

    θ₀ + λ σ̄UVᵀ, with Σ δᵢ = UΣVᵀ and σ̄ the mean of Σ's diagonal, of min(m, n) values.

    Args:
        tensors, base: the models and the base model: matrices, m × n, whole; or blocks of tensors
            of another number of axes, which are averaged.
        scaling_factor: λ.
    """

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        total = _sum(matrices)
        left, values, right = _svd(total)
        rank = _rank(values, total)
        return left[:, :rank].mul_(values.mean()) @ right[:rank]

    return _on_matrices(tensors, base, scaling_factor, merge)


@merge_method(
    "iso_cts",
    aliases=("isotropic_merging/iso_cts",),
    granularity=_granularity,
    memory=_memory,
    paper="2502.04959",
)
def iso_cts(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    scaling_factor: Lambda = 1.0,
    common_space_fraction: Share = 0.8,
) -> Tensor:
    """Iso-CTS: Iso-C on the common directions and on those of each task alone.

    Of the r = min(m, n) singular directions of Σ δᵢ the first k are common. Of each δᵢ, freed from
    the common left directions, the first (r − k)/N are added. Left and right directions are made
    orthonormal, and all singular values equal to their mean.

    Args:
        tensors, base: the models and the base model: matrices, m × n, whole; or blocks of tensors
            of another number of axes, which are averaged.
        scaling_factor: λ.
        common_space_fraction: k/r; k is rounded so that the N models share r − k equally.
    """

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        models, rank = len(matrices), min(matrices[0].shape)
        own = round((rank - int(rank * common_space_fraction)) / models)
        common = rank - min(own, rank // models) * models
        triples = _svd(_sum([matrices[0].clone(), *matrices[1:]]))
        factors = _Factors(matrices[0], rank)
        shared = factors.take(triples, common)
        del triples
        for matrix in matrices:
            matrix.addmm_(shared, shared.T @ matrix, alpha=-1)
            factors.take(_svd(matrix), (rank - common) // models)
        return factors.merged(equal=True)

    return _on_matrices(tensors, base, scaling_factor, merge)


@merge_method(
    "tsv_m",
    aliases=(
        "tsvm",
        "task_singular_vectors",
        "task_singular_vector/TaskSingularVectorMerging",
    ),
    granularity=_granularity,
    memory=_memory,
    paper="2412.00081",
)
def tsv_m(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    scaling_factor: Annotated[float, Alias(("lambda", "alpha"))] = 1.0,
) -> Tensor:
    """TSV-Merge: the first singular directions of each task, made orthogonal to each other's.

    Each δᵢ is cut to the first r/N of its r = min(m, n) singular triples, rounded down; their left
    and right directions are put side by side and replaced by the nearest orthonormal ones:
    θ₀ + λ U⊥ΣV⊥ᵀ. Where r < N the task matrices are averaged.

    Args:
        tensors, base: the models and the base model: matrices, m × n, whole; or blocks of tensors
            of another number of axes, which are averaged.
        scaling_factor: λ.
    """

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        own = min(matrices[0].shape) // len(matrices)
        if not own:
            return _sum(matrices).div_(len(matrices))
        factors = _Factors(matrices[0], own * len(matrices))
        for matrix in matrices:
            factors.take(_svd(matrix), own)
        return factors.merged(equal=False)

    return _on_matrices(tensors, base, scaling_factor, merge)
