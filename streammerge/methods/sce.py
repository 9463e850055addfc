"""SCE: select the elements that differ most between the models, weigh the models, elect signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np

from streammerge.methods import merge_method
from streammerge.methods.combining import add_agreeing, elected_sign, scale, task_vectors
from streammerge.methods.measuring import InTurn, Measurement, Sums, finite_sum
from streammerge.methods.parameters import Bounds
from streammerge.methods.place import Place
from streammerge.methods.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor


def _measure(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Measurement:
    """Count what differs, find the smallest variance that is selected, and sum the squares."""
    share, numel = parameters["select_topk"], math.prod(shape)
    if share >= 1:
        return Sums(lambda tensors, base, place: _squares(task_vectors(tensors, base)))

    def limit(done: list[Measurement]) -> Ranks:
        (different,) = cast(Sums, done[0]).values or [0.0]
        rank = int(int(different) * share)
        return Ranks([(0, rank)], numel, lambda tensors, base: [_variance(tensors, base)])

    def squares(done: list[Measurement]) -> Sums:
        least = cast(Ranks, done[1]).values[0]
        return Sums(lambda tensors, base, place: _squares(_selected(tensors, base, least)))

    return InTurn(Sums(_count_different), limit, squares)


def _count_different(tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> list[float]:
    return [float(np.count_nonzero(_variance(tensors, base).numpy()))]


def _squares(deltas: Sequence[Tensor]) -> list[float]:
    return [finite_sum(delta.double().square_()) for delta in deltas]


def _variance(tensors: Sequence[Tensor], base: Tensor | None) -> Tensor:
    """Return the variance of each element over the task vectors, in fp64.

    It is zero where they are equal: in fp64, sum and quotient of equal fp32 numbers are exact.
    """
    assert base is not None
    deltas = [(tensor - base).double() for tensor in tensors]
    mean = deltas[0].clone()
    for delta in deltas[1:]:
        mean += delta
    mean /= len(deltas)
    variance = deltas[0].sub_(mean).square_()
    for delta in deltas[1:]:
        variance += delta.sub_(mean).square_()
    return variance.div_(len(deltas))


def _selected(tensors: Sequence[Tensor], base: Tensor | None, least: float) -> list[Tensor]:
    """Return the task vectors without the elements whose variance is smaller than `least`."""
    chosen = _variance(tensors, base).ge_(least).to(tensors[0].dtype)
    return [delta.mul_(chosen) for delta in task_vectors(tensors, base)]


@merge_method("sce", measure=_measure, passes=4, paper="2408.07990")
def sce(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Sums | InTurn,
    *,
    select_topk: Annotated[float, Bounds(0, 1)] = 1.0,
    int8_mask: bool = False,
) -> Tensor:
    """SCE: select by variance, calculate weights, erase minorities: θ₀ + Σ wᵢδᵢmᵢ / Σ wᵢmᵢ.

    Of the elements that are not equal in all task vectors, the `select_topk` share with the largest
    variance over the models is selected (rounded down, with all that equal the smallest of those);
    the others stay as in the base model. A model's weight is Σδᵢ² over what is selected. The sign
    of an element is that of Σδᵢ, positive if that is zero, and mᵢ is 1 for the models that have it.

    mergekit gives all models the same weight where the mean of Σδᵢ² over the elements is below
    10⁻⁶, which holds for most fine-tunes; here only where it is zero, as in the paper.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        measured: the smallest variance that is selected, and the sums of squares.
        select_topk: share of the elements to select, in [0, 1].
        int8_mask: without effect: no masks are stored here.
    """
    if isinstance(measured, InTurn):
        _, limit, sums = measured.done
        deltas = _selected(tensors, base, cast(Ranks, limit).values[0])
        squares = cast(Sums, sums).values
    else:
        deltas, squares = task_vectors(tensors, base), measured.values
    total = math.fsum(squares)
    weight = [square / total if total else 1 / len(deltas) for square in squares]
    sign = elected_sign(deltas)
    scale(deltas, weight)
    return add_agreeing(deltas, sign, base, weight, normalize=True, scaling_factor=1.0)
