"""Means of several models on the sphere."""

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
    absolute,
    combination,
    from_base,
    lengths,
)
from streammerge.methods.parameters import Weight

if TYPE_CHECKING:
    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat


def _multislerp(gram: Matrix, parameters: Mapping[str, Any]) -> Sequence[float]:
    weights, eps = np.array(parameters["weight"], float), parameters["eps"]
    if len(weights) == 1:
        return [1.0]
    if parameters["normalize_weights"]:
        weights = weights / weights.sum()
    size = lengths(gram)
    unit = 1 / (size + eps)
    length = math.sqrt(max(0.0, float(weights @ (gram * np.outer(unit, unit)) @ weights)))
    if length < eps:
        return list(map(float, weights))
    return list(map(float, weights * unit * (size @ weights) / length))


def _weights_have_a_sum(parameters: Mapping[str, Any]) -> None:
    if parameters["normalize_weights"] and abs(math.fsum(parameters["weight"])) < 1e-12:
        raise RecipeError(
            "the weights of multislerp sum to zero", "Give others, or normalize_weights: false."
        )


@merge_method(
    "multislerp",
    measure=combination(from_base, _multislerp),
    passes=1,
    check=_weights_have_a_sum,
)
def multislerp(
    tensors: Sequence[Flat],
    base: Flat | None,
    measured: Combination,
    out: Flat,
    workspace: Workspace,
    *,
    weight: Weight,
    normalize_weights: bool = True,
    eps: Tolerance = 1e-8,
) -> bool:
    """Mean direction of several models, or of task vectors if there is a base model.

    r · Σ wᵢuᵢ / ‖Σ wᵢuᵢ‖, with the directions uᵢ = vᵢ/‖vᵢ‖ and the mean length r = Σ wᵢ‖vᵢ‖
    (https://goddard.blog/posts/multislerp-wow-what-a-cool-idea, whose step along the mean of the
    tangents is zero, as the tangents at this point cancel). Where the directions cancel, as scalars
    of both signs do, the linear mean.

    Args:
        tensors, base: flat stretches of the models and of the base model; never written to.
        measured: coefficients of the whole tensors.
        out, workspace: where the result goes, and where temporaries come from.
        weight: of each model.
        normalize_weights: divide the weights by their sum.
        eps: added to lengths that are divided by; a sum of directions shorter than this is zero.
    """
    return measured.write(tensors, base, out, workspace)


def _karcher(gram: Matrix, parameters: Mapping[str, Any]) -> Sequence[float]:
    size, tol = lengths(gram), parameters["tol"]
    count = len(size)
    valid = np.flatnonzero(size > tol)
    shares = np.zeros(count)
    if count == 1 or not len(valid):
        return [float(count == 1)] * count
    inner = gram[np.ix_(valid, valid)] / np.outer(size[valid], size[valid])
    mean = np.full(len(valid), 1 / len(valid))
    length = math.sqrt(max(0.0, mean @ inner @ mean))
    mean = mean / length if length >= tol else np.eye(len(valid))[0]
    for _ in range(parameters["max_iter"]):
        cosines = np.clip(inner @ mean, -1, 1)
        angles = np.arccos(cosines)
        pulls = (angles >= tol) & (angles <= math.pi - tol)
        pull = np.where(pulls, angles / np.where(pulls, np.sin(angles), 1), 0) / len(valid)
        tangent = pull - (pull @ cosines) * mean
        step = math.sqrt(max(0.0, tangent @ inner @ tangent))
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) * tangent / step
        mean = mean / math.sqrt(mean @ inner @ mean)
    shares[valid] = mean / size[valid] * (size.sum() / count)
    return list(map(float, shares))


@merge_method("karcher", measure=combination(absolute, _karcher), passes=1, paper="2603.04972")
def karcher(
    tensors: Sequence[Flat],
    base: Flat | None,
    measured: Combination,
    out: Flat,
    workspace: Workspace,
    *,
    max_iter: Count = 10,
    tol: Tolerance = 1e-5,
) -> bool:
    """Karcher mean: the point on the sphere with the least squared angles to all models.

    Found by steps along the mean of the tangents, (1/N) Σ Ωᵢ/sin Ωᵢ · (uᵢ − cos Ωᵢ · u), with Ωᵢ
    the angle between the direction uᵢ of a model and the present mean u. Its length is the mean of
    the lengths. A base model, if the recipe has one, is one of the models.

    Args:
        tensors, base: flat stretches of the models and of the base model; never written to.
        measured: coefficients of the whole tensors.
        out, workspace: where the result goes, and where temporaries come from.
        max_iter: most steps.
        tol: a step shorter than this is the last; an angle within it of 0 or π has no tangent; a
            model shorter than this has no direction.
    """
    return measured.write(tensors, base, out, workspace)
