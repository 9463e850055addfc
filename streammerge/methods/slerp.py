"""Interpolation on the sphere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from streammerge.methods import merge_method
from streammerge.methods.measuring import Gram
from streammerge.methods.parameters import Bounds

if TYPE_CHECKING:
    from torch import Tensor

_NEARLY_PARALLEL = 0.9995


def _pair(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Gram:
    return Gram(lambda tensors, base: [base, *tensors] if base is not None else tensors)


@merge_method("slerp", measure=_pair, passes=1, models=(1, 1))
def slerp(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Gram,
    *,
    t: Annotated[float, Bounds(0, 1)],
) -> Tensor:
    """Spherical interpolation of two models: from the base model (t = 0) to the other (t = 1).

    sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁, with Ω the angle between the two tensors (Shoemake,
    "Animating rotation with quaternion curves", 1985); linear where they are nearly parallel,
    |cos Ω| > 0.9995, or one of them is zero.

    Args:
        tensors, base: blocks of the one model and of the base model.
        measured: inner products of the two whole tensors.
        t: where between the two.
    """
    products = measured.matrix
    lengths = math.sqrt(products[0, 0] * products[1, 1]) if len(products) else 0.0
    cosine = float(products[0, 1]) / lengths if lengths else 1.0
    if abs(cosine) > _NEARLY_PARALLEL:
        first, second = 1 - t, t
    else:
        angle = math.acos(cosine)
        first = math.sin((1 - t) * angle) / math.sin(angle)
        second = math.sin(t * angle) / math.sin(angle)
    return tensors[0].mul_(second).add_(base.mul_(first))
