"""Means of several models: on the sphere, by the geometry of fine-tuning, and robust ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from streammerge.errors import MergeError
from streammerge.methods import merge_method
from streammerge.methods.combinations import (
    Combination,
    Matrix,
    Vector,
    absolute,
    combination,
    from_base,
    from_first,
    lengths,
)
from streammerge.methods.parameters import Bounds, Weight

if TYPE_CHECKING:
    from torch import Tensor

Count = Annotated[int, Bounds(1, 10_000)]
Tolerance = Annotated[float, Bounds(0, 1, open_low=True)]


def _multislerp(gram: Matrix, parameters: Mapping[str, Any]) -> Sequence[float]:
    weights, eps = np.array(parameters["weight"], float), parameters["eps"]
    if len(weights) == 1:
        return [1.0]
    if parameters["normalize_weights"]:
        weights = weights / weights.sum()
    size = lengths(gram)
    unit = 1 / (size + eps)
    inner = gram * np.outer(unit, unit)
    length = math.sqrt(max(0.0, float(weights @ inner @ weights)))
    if length < eps:
        return list(map(float, weights))
    mean = weights / length
    tangent = weights - (weights @ inner @ mean) * mean
    angle = math.sqrt(max(0.0, float(tangent @ inner @ tangent))) + eps
    on_sphere = mean * math.cos(angle) + tangent * (math.sin(angle) / angle)
    shares: Vector = on_sphere * (size @ weights) * unit
    return list(map(float, shares))


def _weights_have_a_sum(parameters: Mapping[str, Any]) -> None:
    if parameters["normalize_weights"] and sum(parameters["weight"]) == 0:
        raise MergeError("the weights sum to zero", "Give others, or normalize_weights: false.")


@merge_method(
    "multislerp",
    measure=combination(from_base, _multislerp),
    passes=1,
    check=_weights_have_a_sum,
)
def multislerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    measured: Combination,
    *,
    weight: Weight,
    normalize_weights: bool = True,
    eps: Tolerance = 1e-8,
) -> Tensor:
    """Barycentre on the sphere of several models, or of task vectors if there is a base model.

    The weighted mean of the directions, moved along the tangent there, and given the weighted mean
    of the lengths. Where the directions cancel (scalars of both signs do), the linear mean.

    Args:
        tensors, base: blocks of the models and of the base model.
        measured: coefficients of the whole tensors.
        weight: of each model.
        normalize_weights: divide the weights by their sum.
        eps: what counts as no length.
    """
    return measured.apply(tensors, base)


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
        moving = angles >= tol
        pull = np.where(moving, angles / np.where(moving, np.sin(angles), 1), 0) / len(valid)
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
    tensors: Sequence[Tensor],
    measured: Combination,
    *,
    max_iter: Count = 10,
    tol: Tolerance = 1e-5,
) -> Tensor:
    """Karcher mean: the point on the sphere with the least squared angles to all models.

    Found by steps along the mean of the tangents; its length is the mean of the lengths.

    Args:
        tensors: blocks of the models.
        measured: coefficients of the whole tensors.
        max_iter: most steps.
        tol: a step shorter than this is the last; shorter models are left out.
    """
    return measured.apply(tensors, None)


def _model_stock(gram: Matrix, parameters: Mapping[str, Any]) -> Sequence[float]:
    size, count = lengths(gram), len(gram)
    products = np.outer(size, size)
    cosines = np.divide(gram, products, out=np.zeros_like(gram), where=products > 0)
    cosine = float(np.clip(cosines[np.triu_indices(count, 1)], -1, 1).mean())
    return [_ratio(cosine, count) / count] * count


def _ratio(cosine: float, count: int) -> float:
    below = 1 + (count - 1) * cosine
    return count * cosine / below if abs(below) >= 1e-6 else 0.0


@merge_method(
    "model_stock",
    measure=combination(from_base, _model_stock),
    passes=lambda parameters: int(not parameters["filter_wise"]),
    granularity=lambda parameters: "row" if parameters["filter_wise"] else "element",
    models=(2, None),
    paper="2403.19522",
)
def model_stock(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Combination | None,
    *,
    filter_wise: bool = False,
) -> Tensor:
    """Model stock: θ₀ + t · mean(θᵢ − θ₀), with t = N cos θ / (1 + (N − 1) cos θ).

    θ is the mean angle between the task vectors. Where the denominator vanishes, the base model.

    Args:
        tensors, base: blocks of two or more models and of the base model.
        measured: coefficients of the whole tensors; None if filter-wise.
        filter_wise: an angle for each row instead of one for the tensor.
    """
    if measured is not None:
        return measured.apply(tensors, base)
    vectors, origin = from_base(tensors, base)
    wide = [vector.double() for vector in vectors]
    total, pairs, count = wide[0].new_zeros(()), 0, len(wide)
    for index, one in enumerate(wide):
        for other in wide[index + 1 :]:
            size = one.norm(dim=-1, keepdim=True) * other.norm(dim=-1, keepdim=True)
            inner = (one * other).sum(dim=-1, keepdim=True)
            total = total + (inner / size.masked_fill(size == 0, 1)).clamp_(-1, 1)
            pairs += 1
    cosine = total / pairs
    below = 1 + (count - 1) * cosine
    t = (count * cosine / below.masked_fill(below.abs() < 1e-6, 1)).masked_fill_(
        below.abs() < 1e-6, 0
    )
    mean = vectors[0]
    for vector in vectors[1:]:
        mean = mean.add_(vector)
    assert origin is not None
    return mean.mul_((t / count).to(mean.dtype)).add_(origin)


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
        raise MergeError("the geometric median needs weights that are not negative")


@merge_method(
    "geometric_median",
    measure=combination(from_first, _median),
    passes=1,
    check=_weights_are_positive,
    paper="1912.13445",
)
def geometric_median(
    tensors: Sequence[Tensor],
    measured: Combination,
    *,
    weight: Weight,
    max_iter: Count = 100,
    tol: Tolerance = 1e-6,
) -> Tensor:
    """Geometric median: the point with the least sum of distances Σ wᵢ‖θ − θᵢ‖ to the models.

    By Weiszfeld's iteration, tensor by tensor. A single outlier moves it little.

    Args:
        tensors: blocks of the models.
        measured: coefficients of the whole tensors.
        weight: of each model, not negative.
        max_iter: most steps.
        tol: a step shorter than this part of the largest distance is the last.
    """
    return measured.apply(tensors, None)
