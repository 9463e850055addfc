"""Model stock: how far to go from the base model to the mean, told by the angles between models."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streammerge.methods import merge_method
from streammerge.methods.combinations import (
    Combination,
    Matrix,
    combination,
    combine,
    differences,
    from_base,
    lengths,
)
from streammerge.methods.gram import along

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.workspace import Workspace

_NO_RATIO = 1e-6  # a denominator of the ratio that is no more than a rounding error


def _model_stock(gram: Matrix, parameters: Mapping[str, Any]) -> Sequence[float]:
    size, count = lengths(gram), len(gram)
    products = np.outer(size, size)
    cosines = np.divide(gram, products, out=np.zeros_like(gram), where=products > 0)
    cosine = float(np.clip(cosines[np.triu_indices(count, 1)], -1, 1).mean())
    return [_ratio(cosine, count) / count] * count


def _ratio(cosine: float, count: int) -> float:
    below = 1 + (count - 1) * cosine
    return count * cosine / below if abs(below) >= _NO_RATIO else 0.0


@merge_method(
    "model_stock",
    aliases=("model_stock/model_stock",),
    measure=combination(from_base, _model_stock),
    passes=1,
    measure_if=lambda parameters: not parameters["filter_wise"],
    granularity=lambda parameters, shape: "row" if parameters["filter_wise"] else "element",
    models=(2, None),
    paper="2403.19522",
)
def model_stock(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Combination | None,
    out: Tensor | None,
    workspace: Workspace | None,
    *,
    filter_wise: bool = False,
) -> Tensor | bool:
    """Model stock: θ₀ + t · mean(θᵢ − θ₀), with t = N cos Ω / (1 + (N − 1) cos Ω).

    cos Ω is the mean cosine of the angles between the task vectors, 0 for those of length zero.
    Where the denominator is smaller than 10⁻⁶, the result is the base model.

    Args:
        tensors, base: flat stretches of two or more models and of the base model; filter-wise, rows
            of them.
        measured: coefficients of the whole tensors; None if filter-wise.
        out, workspace: where the result goes, and where temporaries come from; filter-wise, None.
        filter_wise: a ratio t for each vector along the last axis, or each filter of a convolution,
            instead of one for the tensor.
    """
    if measured is not None:
        return measured.write(tensors, base, out, workspace)
    vectors = differences(tensors, base)
    shares = _ratio_of_rows(vectors) / len(vectors)
    return combine(vectors, base, [shares] * len(vectors))


def _ratio_of_rows(vectors: Sequence[Tensor]) -> Tensor:
    import torch

    size = [np.sqrt(along(1, vector, vector)) for vector in vectors]
    cosines = []
    for i, j in itertools.combinations(range(len(vectors)), 2):
        lengths_ij = size[i] * size[j]
        inner = along(1, vectors[i], vectors[j])
        cosines.append(inner / np.where(lengths_ij > 0, lengths_ij, 1))
    cosine = np.mean(np.clip(cosines, -1, 1), axis=0)
    below = 1 + (len(vectors) - 1) * cosine
    some = np.abs(below) >= _NO_RATIO
    return torch.from_numpy(np.where(some, len(vectors) * cosine / np.where(some, below, 1), 0))
