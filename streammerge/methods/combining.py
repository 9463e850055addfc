"""Task vectors put together: weighted sums, and means over the models that agree on a sign."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from streammerge.methods.weights import exact_weights

if TYPE_CHECKING:
    from torch import Tensor

Election = Literal["total", "frequency"]
"""How the sign of an element is elected: that of Σ wᵢδᵢ, or the one that more models have."""


def task_vectors(tensors: Sequence[Tensor], base: Tensor | None) -> list[Tensor]:
    """Return θᵢ − θ₀, in the memory of θᵢ."""
    assert base is not None
    return [tensor.sub_(base) for tensor in tensors]


def add_sum(
    deltas: Sequence[Tensor],
    base: Tensor,
    weight: Sequence[float],
    normalize: bool,
    scaling_factor: float,
    factors: Sequence[float] | None = None,
) -> Tensor:
    """Return θ₀ + λ Σ wᵢfᵢδᵢ, divided by Σ wᵢ if that is asked for and not zero.

    Args:
        deltas: δᵢ; overwritten.
        base: θ₀.
        weight, normalize, scaling_factor: wᵢ, whether to divide, and λ.
        factors: fᵢ, what each was rescaled by; they do not count as weights.
    """
    divisor = math.fsum(weight) if normalize else 1.0
    common = scaling_factor / (divisor or 1.0)
    scale(deltas, [share * common for share in weight], factors)
    return _sum(deltas).add_(base) if deltas else base


def add_elected(
    deltas: Sequence[Tensor],
    base: Tensor,
    weight: Sequence[float],
    normalize: bool,
    scaling_factor: float,
    election: Election,
    factors: Sequence[float] | None = None,
) -> Tensor:
    """Return θ₀ + λ Σ wᵢfᵢδᵢmᵢ, where mᵢ is 1 if wᵢδᵢ has the sign elected for its element.

    With `normalize`, the sum is divided by Σ wᵢmᵢ, the weights of those that have that sign. Where
    the votes are equal, the positive sign is elected.

    Args:
        deltas, base, weight, normalize, scaling_factor, factors: as for `add_sum`.
        election: how the sign is elected.
    """
    if not deltas:
        return base
    if normalize:  # then only the proportion counts, and with integers all products are exact
        weight = integers(tuple(weight))
    scale(deltas, weight, factors)
    sign = elected_sign(deltas, election)
    return add_agreeing(deltas, sign, base, weight, normalize, scaling_factor)


@functools.lru_cache(maxsize=4096)
def integers(weight: tuple[float, ...]) -> tuple[float, ...]:
    """Return weights in the same proportion with which products are exact, if they are short."""
    return tuple(map(float, exact_weights(weight, normalize=False).integers))


def elected_sign(deltas: Sequence[Tensor], election: Election = "total") -> Tensor:
    """Return the sign that is elected for each element, 1 or −1."""
    votes = deltas if election == "total" else [delta.sign() for delta in deltas]
    return _sum(votes).ge_(0).mul_(2).sub_(1)


def add_agreeing(
    deltas: Sequence[Tensor],
    sign: Tensor,
    base: Tensor,
    weight: Sequence[float],
    normalize: bool,
    scaling_factor: float,
) -> Tensor:
    """Return θ₀ + λ Σ δᵢmᵢ, where mᵢ is 1 if δᵢ has that sign; divided by Σ wᵢmᵢ to normalize.

    Args:
        deltas: δᵢ, weighted already; overwritten.
        sign: see `elected_sign`.
        base, weight, normalize, scaling_factor: as for `add_sum`.
    """
    import torch

    for delta in deltas:
        delta.mul_(sign).clamp_min_(0)
    total = _sum(deltas).add_(0.0)  # never −0, whatever the order in which zeros were added
    if normalize:
        total /= _agreeing_weight(deltas, weight)
    if scaling_factor != 1:
        total.mul_(scaling_factor)
    # The product is exact, so that it does not matter whether a device fuses it with the addition.
    torch.addcmul(base, total, sign, out=total)
    return total


def scale(
    deltas: Sequence[Tensor], weight: Sequence[float], factors: Sequence[float] | None = None
) -> None:
    """Multiply each task vector by its weight, and by what it is rescaled by, in place."""
    for delta, share, factor in zip(deltas, weight, factors or [1.0] * len(deltas), strict=True):
        if share * factor != 1:
            delta.mul_(share * factor)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum in memory of its own."""
    total = tensors[0] + tensors[1] if len(tensors) > 1 else tensors[0].clone()
    for tensor in tensors[2:]:
        total += tensor
    return total


def _agreeing_weight(agreeing: Sequence[Tensor], weight: Sequence[float]) -> Tensor:
    """Return Σ wᵢ over the models whose element is above zero; 1 instead of 0.

    In place, comparisons give 1 and 0 as floats, several times as fast as masks.
    """
    equal = len(set(weight)) == 1
    for delta, share in zip(agreeing, weight, strict=True):
        delta.gt_(0)
        if not equal:
            delta.mul_(share)
    divisor = agreeing[0]
    for other in agreeing[1:]:
        divisor += other
    if equal and weight[0] != 1:
        divisor.mul_(weight[0])
    if min(weight) > 0:  # then it is 0 or at least the smallest weight
        return divisor.clamp_min_(min(weight))
    return divisor.add_(divisor.clone().eq_(0))
