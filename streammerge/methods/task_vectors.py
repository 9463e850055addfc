"""Methods on whole task vectors, the differences δᵢ = θᵢ − θ₀ to a base model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from streammerge.methods import merge_method
from streammerge.methods.combining import add_sum, task_vectors
from streammerge.methods.parameters import Alias, Density, Lambda, Weight

if TYPE_CHECKING:
    from torch import Tensor


@merge_method("task_arithmetic", drops_zero=True, paper="2212.04089")
def task_arithmetic(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weight: Weight,
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    density: Density,
    rescale: bool = False,
    int8_mask: bool = False,
) -> Tensor:
    """Task arithmetic: θ₀ + λ Σ wᵢ(θᵢ − θ₀).

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        weight: wᵢ, of each model.
        normalize: divide by Σ wᵢ, unless that is zero.
        scaling_factor: λ.
        density, rescale, int8_mask: without effect, here as in mergekit: nothing is made sparse.
    """
    return add_sum(task_vectors(tensors, base), base, weight, normalize, scaling_factor)


@merge_method("expo", aliases=("linear/expo",), models=(1, 1), paper="2404.16792")
def expo(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    alpha: Annotated[float, Alias(("extrapolation_factor",))],
) -> Tensor:
    """ExPO: extrapolation beyond a fine-tuned model, θ + α(θ − θ₀).

    Args:
        tensors, base: blocks of the one model and of the model that it was tuned from.
        alpha: how far beyond; 0 gives the model, −1 the base model.
    """
    (tuned,) = tensors
    return (tuned - base).mul_(alpha).add_(tuned)


@merge_method("magmax", aliases=("magmax/magmax",), paper="2407.06322")
def magmax(tensors: Sequence[Tensor], base: Tensor, *, scaling_factor: Lambda = 1.0) -> Tensor:
    """MagMax: of each element the change of the model that changed it most, θ₀ + λδ.

    Of two changes of equal size and different sign, the positive one is taken.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        scaling_factor: λ; the authors' experiments use 0.5.
    """
    import torch

    deltas = task_vectors(tensors, base)
    most, least = deltas[0], deltas[0].clone()
    for delta in deltas[1:]:
        torch.maximum(most, delta, out=most)
        torch.minimum(least, delta, out=least)
    largest = torch.where(most >= -least, most, least)
    return (largest.mul_(scaling_factor) if scaling_factor != 1 else largest).add_(base)
