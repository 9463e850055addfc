"""Methods on the singular values of task matrices; what is not a matrix is averaged.

They need each matrix whole. A convolution's filters are the rows of a matrix, as in the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from streammerge.methods import merge_method
from streammerge.methods.combining import task_vectors
from streammerge.methods.parameters import Alias, Bounds, Lambda

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Bounds(0, 1)]


def _memory(shape: tuple[int, ...], sources: int) -> int:
    """Return the bytes that a matrix takes: inputs, task matrices, factors and LAPACK's room."""
    if len(shape) < 2:
        return 0
    rows, columns = shape[0], math.prod(shape[1:])
    small = min(rows, columns)
    return 8 * (rows * columns * (2 * sources + 3) + 3 * small * (rows + columns) + 8 * small**2)


def _on_matrices(
    tensors: Sequence[Tensor],
    base: Tensor,
    scale: float,
    merge: Callable[[Sequence[Tensor]], Tensor],
) -> Tensor:
    """Return θ₀ + λ·merge(task matrices), or θ₀ + λ·mean for what is not a matrix."""
    deltas = task_vectors(tensors, base)
    if base.dim() < 2 or not base.numel():
        total = deltas[0]
        for delta in deltas[1:]:
            total = total.add_(delta)
        return total.div_(len(deltas)).mul_(scale).add_(base)
    merged = merge([delta.reshape(delta.shape[0], -1) for delta in deltas])
    return merged.mul_(scale).reshape(base.shape).add_(base)


def _sum(matrices: Sequence[Tensor]) -> Tensor:
    total = matrices[0].clone()
    for matrix in matrices[1:]:
        total += matrix
    return total


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right


def _orthogonal(matrix: Tensor) -> Tensor:
    """Return the nearest matrix with orthonormal columns: PQᵀ for the SVD PΣQᵀ."""
    left, _, right = _svd(matrix)
    return left @ right


@merge_method("iso_c", granularity="tensor", memory=_memory, paper="2502.04959")
def iso_c(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    scaling_factor: Lambda = 1.0,
) -> Tensor:
    """Iso-C: the sum of the task matrices with all singular values made equal to their mean.

    θ₀ + λ σ̄UVᵀ, with Σ δᵢ = UΣVᵀ and σ̄ the mean of Σ's diagonal.

    Args:
        tensors, base: the models and the base model, whole, of one shape.
        scaling_factor: λ.
    """

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        left, values, right = _svd(_sum(matrices))
        return (left @ right).mul_(values.mean())

    return _on_matrices(tensors, base, scaling_factor, merge)


@merge_method("iso_cts", granularity="tensor", memory=_memory, paper="2502.04959")
def iso_cts(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    scaling_factor: Lambda = 1.0,
    common_space_fraction: Annotated[Share, Alias(("common_subspace_fraction",))] = 0.8,
) -> Tensor:
    """Iso-CTS: Iso-C on the common directions and on those of each task alone.

    Of the singular directions of Σ δᵢ the first k are common. Of each δᵢ, freed from the common
    left directions, the first (r − k)/N are added. Left and right directions are made orthonormal,
    and all singular values equal to their mean.

    Args:
        tensors, base: the models and the base model, whole, of one shape.
        scaling_factor: λ.
        common_space_fraction: k as a share of the rank r.
    """

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        import torch

        left, values, right = _svd(_sum(matrices))
        rank = len(values)
        own = (rank - int(rank * common_space_fraction)) // len(matrices)
        common = rank - own * len(matrices)
        shared = left[:, :common]
        parts = [(shared, values[:common], right[:common])]
        for matrix in matrices:
            u, s, v = _svd(matrix - shared @ (shared.T @ matrix))
            parts.append((u[:, :own], s[:own], v[:own]))
        directions = _orthogonal(torch.cat([u for u, _, _ in parts], dim=1))
        others = _orthogonal(torch.cat([v for _, _, v in parts], dim=0))
        return (directions @ others).mul_(torch.cat([s for _, s, _ in parts]).mean())

    return _on_matrices(tensors, base, scaling_factor, merge)


@merge_method(
    "tsv_m",
    aliases=("tsvm", "task_singular_vectors"),
    granularity="tensor",
    memory=_memory,
    paper="2412.00081",
)
def tsv_m(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    scaling_factor: Lambda = 1.0,
) -> Tensor:
    """TSV-Merge: the first singular directions of each task, made orthogonal to each other's.

    Each δᵢ is cut to the first r/N of its singular triples; their left and right directions are
    put side by side and replaced by the nearest orthonormal ones: θ₀ + λ U⊥ΣV⊥ᵀ.

    Args:
        tensors, base: the models and the base model, whole, of one shape.
        scaling_factor: λ.
    """

    def merge(matrices: Sequence[Tensor]) -> Tensor:
        import torch

        keep = max(1, min(matrices[0].shape) // len(matrices))
        parts = [(u[:, :keep], s[:keep], v[:keep]) for u, s, v in map(_svd, matrices)]
        left = _orthogonal(torch.cat([u for u, _, _ in parts], dim=1))
        right = _orthogonal(torch.cat([v for _, _, v in parts], dim=0))
        return (left * torch.cat([s for _, s, _ in parts])) @ right

    return _on_matrices(tensors, base, scaling_factor, merge)
