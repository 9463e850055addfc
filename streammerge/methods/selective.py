"""Methods for a base model and one other, of which only some changes are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from streammerge.methods import merge_method
from streammerge.methods.parameters import Bounds
from streammerge.methods.place import Place
from streammerge.methods.ranks import Ranks

if TYPE_CHECKING:
    from torch import Tensor

_QUARTILES = (0.25, 0.5, 0.75)
_FLOOR = 1e-8  # added to probabilities, so that none is zero


@merge_method("nearswap", models=(1, 1))
def nearswap(tensors: Sequence[Tensor], base: Tensor, *, t: Annotated[float, Bounds(0)]) -> Tensor:
    """NearSwap: the base model moved towards another, each element by at most t.

    Elements that are no further apart than t are swapped for the other model's. (Alchemonaut,
    https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001)

    Args:
        tensors, base: blocks of the other model and of the base model.
        t: ≥ 0; usually about 0.0001.
    """
    import torch

    (other,) = tensors
    change = other - base
    far = change.abs() > t
    return torch.where(far | change.isnan(), change.clamp_(-t, t).add_(base), other)


def _importance(model: Tensor, base: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return |θ − θ₀| times the divergence of the row's softmax from the base model's.

    Args:
        model, base: whole rows.
        shape: of the whole tensor; a row lies along its last axis.
    """
    import torch

    length = shape[-1] if shape else 1
    # In fp64: the logarithms nearly cancel, for the rows of fine-tunes are nearly equal.
    wide = [x.cpu().double().numpy().reshape(-1, length) for x in (model, base)]
    with np.errstate(invalid="ignore"):  # a row with NaN or Inf has no divergence
        p, q = (_softmax(rows) for rows in wide)
        divergence = torch.from_numpy((p * np.log(p / q)).sum(axis=1, keepdims=True).clip(min=0))
    change = (model - base).abs_().view(-1, length)
    return change.mul_(divergence.to(change.device, change.dtype)).view(model.shape)


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares + _FLOOR


def _quartiles(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Ranks:
    numel = math.prod(shape)

    def importance(tensors: Sequence[Tensor], base: Tensor | None) -> list[Tensor]:
        assert base is not None
        return [_importance(tensors[0], base, shape)]

    wanted = [(0, numel - int(share * (numel - 1))) for share in _QUARTILES if numel]
    return Ranks(wanted, numel, importance)


@merge_method("arcee_fusion", granularity="row", measure=_quartiles, passes=2, models=(1, 1))
def arcee_fusion(tensors: Sequence[Tensor], base: Tensor, measured: Ranks, place: Place) -> Tensor:
    """Arcee Fusion: of another model, the changes whose importance is an outlier in their tensor.

    An element's importance is |θ − θ₀| · KL(p ‖ p₀), with p and p₀ the softmax of its row (along
    the last axis) in the two models. A change is taken if that is at least median + 1.5 · (upper −
    lower quartile), which are exact order statistics here; mergekit takes them from a random
    sample of a million elements. (Arcee AI, as implemented in mergekit)

    Args:
        tensors, base: rows of the other model and of the base model, of shape [rows, elements].
        measured: quartiles and median of the importance in the whole tensor.
        place: where the rows lie.
    """
    (model,) = tensors
    lower, median, upper = measured.values
    taken = _importance(model, base, place.shape).ge_(median + 1.5 * (upper - lower))
    return model.sub_(base).mul_(taken).add_(base)
