"""Methods on task vectors, the differences δᵢ = θᵢ − θ₀ to a base model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from streammerge.methods import merge_method
from streammerge.methods.measuring import Ranks
from streammerge.methods.parameters import Density, Lambda, Weight

if TYPE_CHECKING:
    from torch import Tensor


def task_vectors(tensors: Sequence[Tensor], base: Tensor | None) -> Sequence[Tensor]:
    """Return θᵢ − θ₀, in the memory of θᵢ."""
    assert base is not None
    return [tensor.sub_(base) for tensor in tensors]


@merge_method("task_arithmetic", drops_zero=True, paper="2212.04089")
def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Weight,
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
) -> Tensor:
    """Task arithmetic: θ₀ + λ Σ wᵢ(θᵢ − θ₀).

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        weight: wᵢ, of each model.
        normalize: divide by Σ wᵢ.
        scaling_factor: λ.
    """
    total = base.new_zeros(base.shape)
    for delta, share in zip(task_vectors(tensors, base), weight, strict=True):
        total += delta.mul_(share)
    if normalize and math.fsum(weight):
        total /= math.fsum(weight)
    return total.mul_(scaling_factor).add_(base)


def _largest(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Ranks:
    numel = math.prod(shape)
    wanted = [(i, max(1, int(d * numel))) for i, d in enumerate(parameters["density"])]
    return Ranks(task_vectors, wanted)


@merge_method("ties", aliases=("ties_merging",), measure=_largest, passes=2, paper="2306.01708")
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Ranks,
    *,
    weight: Weight,
    density: Density,
    majority_sign_method: Literal["total", "frequency"] = "total",
    normalize: bool = True,
    scaling_factor: Lambda = 1.0,
) -> Tensor:
    """TIES: trim, elect signs, merge what agrees.

    Of each task vector the `density` largest magnitudes stay, and all that equal the smallest of
    those. The sign of an element is elected over the models, and the mean is taken over those that
    have it: θ₀ + λ Σ wᵢδᵢmᵢ / Σ wᵢmᵢ.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        measured: the smallest magnitude that stays, for each model.
        weight: wᵢ, of each model.
        density: share of a task vector's elements that stays.
        majority_sign_method: total: the sign of Σ wᵢδᵢ; frequency: the sign that more models have.
        normalize: divide by the weights of the models that agree.
        scaling_factor: λ.
    """
    deltas = task_vectors(tensors, base)
    for delta, share, limit, keep in zip(deltas, weight, measured.values, density, strict=True):
        if keep <= 0:
            delta.zero_()
        elif keep < 1:
            delta.masked_fill_(delta.abs() < limit, 0)
        delta.mul_(share)
    elected = base.new_zeros(base.shape)
    for delta in deltas:
        elected += delta if majority_sign_method == "total" else delta.sign()
    positive = elected >= 0
    total, divisor = base.new_zeros(base.shape), base.new_zeros(base.shape)
    for delta, share in zip(deltas, weight, strict=True):
        agrees = ((delta > 0) & positive) | ((delta < 0) & ~positive)
        total += delta.mul_(agrees)
        divisor += agrees * share
    if normalize:
        total /= divisor.masked_fill_(divisor == 0, 1)
    return total.mul_(scaling_factor).add_(base)
