"""RAM: what only one model changed stays whole, what several changed is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from streammerge.methods import merge_method
from streammerge.methods.combining import task_vectors
from streammerge.methods.measuring import Sums
from streammerge.methods.parameters import Bounds
from streammerge.methods.place import Place

if TYPE_CHECKING:
    from torch import Tensor

Epsilon = Annotated[float, Bounds(0)]
"""Changes up to this size count as none."""


def _changed(deltas: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Return 1 where a model changed an element and 0 elsewhere; and how many models did."""
    masks = [delta.abs().gt_(epsilon) for delta in deltas]
    count = masks[0].clone()
    for mask in masks[1:]:
        count += mask
    return masks, count


@merge_method("ram", paper="2601.13572")
def ram(tensors: Sequence[Tensor], base: Tensor, *, epsilon: Epsilon = 1e-5) -> Tensor:
    """RAM: to the base model, the mean change over those models that changed an element.

    θ₀ + Σ δᵢmᵢ / Σ mᵢ, where mᵢ is 1 if |δᵢ| > ε.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        epsilon: ε ≥ 0; smaller changes are left out.
    """
    return _merge(tensors, base, epsilon, [1.0] * len(tensors))


def _merge(
    tensors: Sequence[Tensor], base: Tensor, epsilon: float, factors: Sequence[float]
) -> Tensor:
    """Return the base model and the mean change, multiplied by a model's factor where it is alone.

    Args:
        tensors, base, epsilon: see `ram`.
        factors: one for each model.
    """
    deltas = task_vectors(tensors, base)
    masks, count = _changed(deltas, epsilon)
    alone = count.clone().eq_(1)
    total = base.new_zeros(base.shape)
    for delta, mask, factor in zip(deltas, masks, factors, strict=True):
        delta.mul_(mask)
        total += delta if factor == 1 else delta.mul_((alone * (factor - 1)).add_(1))
    return total.div_(count.clamp_min_(1)).add_(base)


def _count(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Sums:
    """Count, for each model, the elements it changed with others, and those it changed alone."""

    def terms(tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> list[float]:
        masks, count = _changed(task_vectors(tensors, base), parameters["epsilon"])
        alone = count.clone().eq_(1)
        unique = [float((mask * alone).count_nonzero()) for mask in masks]
        return unique + [float(mask.count_nonzero()) for mask in masks]

    return Sums(terms)


@merge_method("ramplus_tl", measure=_count, passes=1, paper="2601.13572")
def ramplus_tl(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Sums,
    *,
    r: Annotated[float, Bounds(0)] = 0.1,
    alpha: Annotated[float, Bounds(0)] = 0.2,
    epsilon: Epsilon = 1e-5,
) -> Tensor:
    """RAM+, tensor by tensor: as `ram`, with the changes that only one model made enlarged.

    A change that model i alone made is multiplied by 1 + r · min(ρᵢ, α). ρᵢ is the number of
    elements that it changed together with others, divided by the number that it changed alone; both
    within the tensor, where the paper counts over the whole model.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        measured: the numbers of elements.
        r: ≥ 0.
        alpha: α ≥ 0, the largest ρ that counts.
        epsilon: ε ≥ 0; smaller changes are left out.
    """
    models = len(tensors)
    unique, changed = measured.values[:models], measured.values[models:]
    ratios = [(c - u) / u if u else 0.0 for u, c in zip(unique, changed, strict=True)]
    return _merge(tensors, base, epsilon, [1 + r * min(ratio, alpha) for ratio in ratios])
