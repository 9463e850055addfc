"""Task vectors made sparse, and what they are rescaled by afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streammerge.methods.combining import task_vectors
from streammerge.methods.measuring import Sums, finite_sum
from streammerge.methods.place import Place

if TYPE_CHECKING:
    from torch import Tensor

RescaleBy = Literal["density", "l1"]
"""What makes up for dropped elements: their probability to stay, or the Σ|δ| that is lost."""


def trim(delta: Tensor, limit: float) -> None:
    """Zero what is smaller than a magnitude; all that equals it stays, and so does NaN."""
    import torch

    if limit == 0:
        return
    kind = np.float32 if delta.dtype is torch.float32 else np.float64
    # A NaN as limit: there are more of them than elements to keep.
    below = np.nextafter(kind(np.inf if np.isnan(limit) else limit), kind(0))
    torch.hardshrink(delta, float(below), out=delta)  # keeps what is larger than that


def drop_outliers(delta: Tensor, limit: float) -> None:
    """Zero what is larger than a magnitude; nothing is larger than NaN."""
    import torch

    if not np.isnan(limit):
        delta.sub_(torch.hardshrink(delta, limit))


def needs_norms(parameters: Mapping[str, Any]) -> bool:
    """Whether random dropping is made up for by Σ|δ|, which has to be measured."""
    by_norm = parameters["rescale"] and parameters["rescale_by"] == "l1"
    return by_norm and any(0 < keep < 1 for keep in parameters["density"])


def norm_sums(sparsify: Callable[[list[Tensor], Place], None]) -> Sums:
    """Return the measurement of Σ|δ| of each model, before it is made sparse and after.

    Args:
        sparsify: makes the task vectors of a block sparse.
    """

    def terms(tensors: Sequence[Tensor], base: Tensor | None, place: Place) -> list[float]:
        deltas = task_vectors(tensors, base)
        before = [finite_sum(delta.abs().double()) for delta in deltas]
        sparsify(deltas, place)
        return before + [finite_sum(delta.abs().double()) for delta in deltas]

    return Sums(terms)


def norm_factors(sums: Sums) -> list[float]:
    """Return what gives each sparse task vector its Σ|δ| back; 1 where nothing is left of it."""
    models = len(sums.values) // 2
    before, after = sums.values[:models], sums.values[models:]
    return [b / a if a else 1.0 for b, a in zip(before, after, strict=True)]
