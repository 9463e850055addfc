"""Methods on whole task vectors, the differences δᵢ = θᵢ − θ₀ to a base model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from streammerge.methods import merge_method
from streammerge.methods.combining import task_vectors
from streammerge.methods.parameters import Alias, Density, Lambda, Weight
from streammerge.methods.weights import as_written

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat


@merge_method(
    "task_arithmetic",
    aliases=("linear/task_arithmetic_for_causallm", "linear/task_arithmetic_for_llama"),
    drops_zero=True,
    paper="2212.04089",
)
def task_arithmetic(
    tensors: Sequence[Flat],
    base: Flat,
    out: Flat,
    workspace: Workspace,
    *,
    weight: Weight,
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    density: Density,
    rescale: bool = False,
    int8_mask: bool = False,
) -> bool:
    """Task arithmetic: θ₀ + λ Σ wᵢ(θᵢ − θ₀), correctly rounded.

    That is a weighted sum, with the weight 1 − λ Σ wᵢ for θ₀, and computed like an average; decimal
    weights count as written.

    Args:
        tensors, base: flat stretches of the models and of the base model; never written to.
        out: where the result goes.
        workspace: where temporaries come from.
        weight: wᵢ, of each model.
        normalize: divide by Σ wᵢ, unless that is zero.
        scaling_factor: λ.
        density, rescale, int8_mask: without effect, here as in mergekit: nothing is made sparse.
    """
    from streammerge.methods.averaging import weighted_sum

    shares = _shares(tuple(weight), normalize, scaling_factor)
    return weighted_sum((*tensors, base), out, workspace, shares, False)


@functools.lru_cache(maxsize=4096)
def _shares(
    weight: tuple[float, ...], normalize: bool, scaling_factor: float
) -> tuple[Fraction, ...]:
    """Return the weight of each model, and that of the base model."""
    weights = [as_written(share) for share in weight]
    divisor = sum(weights) if normalize else 1
    scale = as_written(scaling_factor) / (divisor or 1)
    shares = [scale * share for share in weights]
    return (*shares, 1 - sum(shares, Fraction(0)))


@merge_method("expo", aliases=("linear/expo",), models=(1, 1), paper="2404.16792")
def expo(
    tensors: Sequence[Flat],
    base: Flat,
    out: Flat,
    workspace: Workspace,
    *,
    alpha: Annotated[float, Alias(("extrapolation_factor",))],
) -> bool:
    """ExPO: extrapolation beyond a fine-tuned model, θ + α(θ − θ₀), correctly rounded.

    Args:
        tensors, base: flat stretches of the one model and of the model that it was tuned from.
        out, workspace: as for `task_arithmetic`.
        alpha: how far beyond; 0 gives the model, −1 the base model.
    """
    from streammerge.methods.averaging import weighted_sum

    beyond = as_written(alpha)
    return weighted_sum((*tensors, base), out, workspace, (1 + beyond, -beyond), False)


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
