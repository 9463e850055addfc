"""Interpolation along the arc between two models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from streammerge.methods import Granularity, merge_method
from streammerge.methods.combinations import (
    Combination,
    Matrix,
    absolute,
    between,
    combination,
    combine,
    differences,
    from_base,
    lengths,
)
from streammerge.methods.gram import along
from streammerge.methods.parameters import Bounds, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat

_NEARLY_PARALLEL = 0.9995  # these are the limits of mergekit 0.1.5
_COLINEAR = 1e-16  # sin² of the angle
_NO_LENGTH = {"slerp": 1e-8, "nuslerp": 1e-7}


def _slerp(gram: Matrix, parameters: Mapping[str, Any]) -> tuple[float, float]:
    t, size = parameters["t"], lengths(gram)
    size[size <= _NO_LENGTH["slerp"]] = 1.0
    cosine = float(gram[0, 1] / (size[0] * size[1]))
    return (1 - t, t) if abs(cosine) > _NEARLY_PARALLEL else between(cosine, t)


@merge_method(
    "slerp",
    aliases=("slerp/slerp", "slerp/slerp_lm"),
    measure=combination(absolute, _slerp),
    passes=1,
    models=(1, 1),
)
def slerp(
    tensors: Sequence[Flat],
    base: Flat,
    measured: Combination,
    out: Flat,
    workspace: Workspace,
    *,
    t: Annotated[float, Bounds(0, 1)],
) -> bool:
    """Spherical interpolation: from the base model (t = 0) to the other (t = 1) along the arc.

    sin((1−t)Ω)/sin Ω · θ₀ + sin(tΩ)/sin Ω · θ₁, with Ω the angle between the two whole tensors
    (Shoemake, "Animating rotation with quaternion curves", 1985). Linear where they are nearly
    parallel or opposite, |cos Ω| > 0.9995. A tensor of length 10⁻⁸ or less counts as orthogonal to
    any other.

    Args:
        tensors, base: flat stretches of the one model and of the base model; never written to.
        measured: coefficients of the two.
        out, workspace: where the result goes, and where temporaries come from.
        t: where between the two.
    """
    return measured.write(tensors, base, out, workspace)


def _share(weight: Sequence[float]) -> float:
    total = weight[0] + weight[1]
    return weight[1] / total if abs(total) >= 1e-6 else 0.5


def _nuslerp(gram: Matrix, parameters: Mapping[str, Any]) -> tuple[float, float]:
    t, size = _share(parameters["weight"]), np.maximum(lengths(gram), _NO_LENGTH["nuslerp"])
    cosine = float(gram[0, 1] / (size[0] * size[1]))
    return (1 - t, t) if 1 - cosine**2 <= _COLINEAR else between(cosine, t)


def _granularity(parameters: Mapping[str, Any], shape: tuple[int, ...]) -> Granularity:
    if parameters["nuslerp_flatten"]:
        return "element"
    return "tensor" if parameters["nuslerp_row_wise"] else "row"


@merge_method(
    "nuslerp",
    measure=combination(from_base, _nuslerp),
    passes=1,
    measure_if=lambda parameters: bool(parameters["nuslerp_flatten"]),
    granularity=_granularity,
    models=(2, 2),
)
def nuslerp(
    tensors: Sequence[Tensor],
    base: Tensor | None,
    measured: Combination | None,
    out: Tensor | None,
    workspace: Workspace | None,
    *,
    weight: Weight,
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Tensor | bool:
    """Spherical interpolation of two models, or of two task vectors if there is a base model.

    As slerp, with t = w₂ / (w₁ + w₂), or ½ if the weights sum to zero; and linear only where the
    two are parallel or opposite. A vector shorter than 10⁻⁷ counts as if it had that length.

    Args:
        tensors: flat stretches of the two models; not flattened, rows of them.
        base: of the base model, if there is one.
        measured: coefficients of the whole tensors; None unless flattened.
        out, workspace: where the result goes, and where temporaries come from; not flattened, None.
        weight: of each model; only their proportion counts.
        nuslerp_flatten: one angle for the whole tensor; otherwise one for each vector along the
            last axis, which in a convolution is a filter.
        nuslerp_row_wise: not flattened: one angle for each vector along the first axis instead. The
            tensor is then needed whole.
    """
    if measured is not None:
        return measured.write(tensors, base, out, workspace)
    if not tensors[0].numel():
        return tensors[0]
    rows = tensors[0].shape[0] if tensors[0].dim() else 1
    first, second = (tensor.reshape(rows, -1) for tensor in tensors)
    origin = None if base is None else base.view(rows, -1)
    vectors = differences([first, second], origin)
    shares = _arcs(vectors, 0 if nuslerp_row_wise else 1, _share(weight))
    return combine(vectors, origin, shares).view(tensors[0].shape)


def _arcs(matrices: Sequence[Tensor], axis: int, t: float) -> tuple[Tensor, Tensor]:
    """Return the shares of the vectors along an axis of two matrices."""
    import torch

    first, second = matrices
    squares = along(axis, first, first), along(axis, second, second)
    size = np.prod([np.maximum(np.sqrt(s), _NO_LENGTH["nuslerp"]) for s in squares], axis=0)
    cosine = np.clip(along(axis, first, second) / size, -1, 1)
    linear = 1 - cosine**2 <= _COLINEAR
    angle = np.arccos(np.where(linear, 0, cosine))
    one = np.where(linear, 1 - t, np.sin((1 - t) * angle) / np.sin(angle))
    other = np.where(linear, t, np.sin(t * angle) / np.sin(angle))
    return torch.from_numpy(one), torch.from_numpy(other)
