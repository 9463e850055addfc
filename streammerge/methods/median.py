"""Means that a single outlier moves little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streammerge.errors import RecipeError
from streammerge.methods import merge_method
from streammerge.methods.combinations import (
    Combination,
    Count,
    Matrix,
    Tolerance,
    combination,
    from_first,
    lengths,
)
from streammerge.methods.parameters import Weight

if TYPE_CHECKING:
    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat


def _median(gram: Matrix, parameters: Mapping[str, Any]) -> Sequence[float]:
    """Weiszfeld's steps, in coordinates relative to the first model."""
    weights = np.array(parameters["weight"], float)
    inner = np.zeros((len(weights), len(weights)))
    inner[1:, 1:] = gram
    shares = weights / weights.sum()
    scale = float(lengths(inner).max())
    for _ in range(parameters["max_iter"] if scale else 0):
        apart = shares - np.eye(len(weights))
        squares = np.einsum("ij,jk,ik->i", apart, inner, apart)
        pull = weights / np.sqrt(np.maximum(squares, (parameters["tol"] * scale) ** 2))
        after = pull / pull.sum()
        step = after - shares
        shares = after
        if math.sqrt(max(0.0, step @ inner @ step)) <= parameters["tol"] * scale:
            break
    return list(map(float, shares[1:]))


def _weights_are_positive(parameters: Mapping[str, Any]) -> None:
    if min(parameters["weight"]) < 0 or sum(parameters["weight"]) <= 0:
        raise RecipeError(
            f"the weights {', '.join(map(str, parameters['weight']))} have no geometric median",
            "Give none below zero, and at least one above.",
        )


@merge_method(
    "geometric_median",
    measure=combination(from_first, _median),
    passes=1,
    check=_weights_are_positive,
    paper="1912.13445",
)
def geometric_median(
    tensors: Sequence[Flat],
    measured: Combination,
    out: Flat,
    workspace: Workspace,
    *,
    weight: Weight,
    max_iter: Count = 100,
    tol: Tolerance = 1e-6,
) -> bool:
    """Geometric median: the point with the least sum of distances Σ wᵢ‖θ − θᵢ‖ to the models.

    By Weiszfeld's iteration, tensor by tensor. A single outlier moves it little.

    Args:
        tensors: flat stretches of the models; never written to.
        measured: coefficients of the whole tensors.
        out, workspace: where the result goes, and where temporaries come from.
        weight: of each model, not negative.
        max_iter: most steps.
        tol: a step shorter than this part of the largest distance is the last.
    """
    return measured.write(tensors, None, out, workspace)
