"""Interpolation along the arc between two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from streammerge.methods import Granularity, merge_method
from streammerge.methods.combinations import (
    Combination,
    Matrix,
    absolute,
    between,
    combination,
    combine,
    from_base,
    lengths,
)
from streammerge.methods.parameters import Bounds, Weight

if TYPE_CHECKING:
    from torch import Tensor

_NEARLY_PARALLEL = 0.9995
_COLINEAR = 1e-16  # sin² of the angle
_NO_LENGTH = 1e-7


def _slerp(gram: Matrix, parameters: Mapping[str, Any]) -> tuple[float, float]:
    t, size = parameters["t"], lengths(gram)
    cosine = float(gram[0, 1] / (size[0] * size[1])) if size.all() else 1.0
    return (1 - t, t) if abs(cosine) > _NEARLY_PARALLEL else between(cosine, t)


@merge_method("slerp", measure=combination(absolute, _slerp), passes=1, models=(1, 1))
def slerp(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Combination,
    *,
    t: Annotated[float, Bounds(0, 1)],
) -> Tensor:
    """Spherical interpolation: from the base model (t = 0) to the other (t = 1) along the arc.

    sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁, with Ω the angle between the two whole tensors
    (Shoemake, "Animating rotation with quaternion curves", 1985). Linear where they are nearly
    parallel, |cos Ω| > 0.9995, or one of them is zero.

    Args:
        tensors, base: blocks of the one model and of the base model.
        measured: coefficients of the two.
        t: where between the two.
    """
    return measured.apply(tensors, base)


def _share(weight: Sequence[float]) -> float:
    total = weight[0] + weight[1]
    return weight[1] / total if abs(total) >= 1e-6 else 0.5


def _nuslerp(gram: Matrix, parameters: Mapping[str, Any]) -> tuple[float, float]:
    t, size = _share(parameters["weight"]), lengths(gram)
    if min(size) < _NO_LENGTH:
        return 1 - t, t
    cosine = float(gram[0, 1] / (size[0] * size[1]))
    return (1 - t, t) if 1 - cosine**2 <= _COLINEAR else between(cosine, t)


def _granularity(parameters: Mapping[str, Any]) -> Granularity:
    if parameters["nuslerp_flatten"]:
        return "element"
    return "tensor" if parameters["nuslerp_row_wise"] else "row"


@merge_method(
    "nuslerp",
    measure=combination(from_base, _nuslerp),
    passes=lambda parameters: int(parameters["nuslerp_flatten"]),
    granularity=_granularity,
    models=(2, 2),
)
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    measured: Combination | None,
    *,
    weight: Weight,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Tensor:
    """Spherical interpolation of two models, or of two task vectors if there is a base model.

    As slerp, with t = w₂ / (w₁ + w₂), and linear only where the two are parallel.

    Args:
        tensors: blocks of the two models.
        base: of the base model, if there is one.
        measured: coefficients of the whole tensors; None unless flattened.
        weight: of each model; only their proportion counts.
        nuslerp_flatten: one angle for the whole tensor; otherwise one for each vector along the
            last axis.
        nuslerp_row_wise: not flattened: one angle for each vector along the first axis instead.
    """
    if measured is not None:
        return measured.apply(tensors, base)
    (first, second), origin = from_base(tensors, base)
    axis = 0 if nuslerp_row_wise else -1
    one, other = _arcs(first, second, axis, _share(weight))
    return combine([first, second], origin, [one, other])


def _arcs(first: Tensor, second: Tensor, axis: int, t: float) -> tuple[Tensor, Tensor]:
    """Return the shares of vectors along an axis, in fp64."""
    a, b = first.double(), second.double()
    if not first.dim():
        a, b = a.reshape(1), b.reshape(1)
    sizes = a.norm(dim=axis, keepdim=True).clamp_(min=_NO_LENGTH)
    sizes = sizes * b.norm(dim=axis, keepdim=True).clamp_(min=_NO_LENGTH)
    cosine = ((a * b).sum(dim=axis, keepdim=True) / sizes).clamp_(-1, 1)
    linear = 1 - cosine.square() <= _COLINEAR
    angle = cosine.masked_fill(linear, 0).acos()
    one = ((1 - t) * angle).sin() / angle.sin()
    other = (t * angle).sin() / angle.sin()
    one, other = one.masked_fill(linear, 1 - t), other.masked_fill(linear, t)
    if not first.dim():
        one, other = one.reshape(()), other.reshape(())
    return one.to(first.dtype), other.to(first.dtype)
