"""Model Breadcrumbs: the smallest changes are trimmed, and the largest ones as outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from streammerge.methods import merge_method
from streammerge.methods.combining import Election, add_elected, add_sum, task_vectors
from streammerge.methods.measuring import InTurn, Measurement, Sums
from streammerge.methods.parameters import Bounds, Density, Lambda, PerModel, Weight
from streammerge.methods.ranks import Ranks
from streammerge.methods.sparsifying import drop_outliers, norm_factors, norm_sums, trim

if TYPE_CHECKING:
    from torch import Tensor

Gamma = Annotated[Sequence[float], PerModel(0.01), Bounds(0, 1)]
"""The share of each task vector's elements that are too large to stay."""


def _trims(parameters: Mapping[str, Any]) -> bool:
    return any(keep < 1 for keep in parameters["density"])


def _measure(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Measurement:
    """Find the largest and the smallest magnitude that stay of each model; then the norms."""
    density, numel = parameters["density"], math.prod(shape)
    ranks = [_ranks(numel, *pair) for pair in zip(density, parameters["gamma"], strict=True)]
    wanted = [(model, rank) for model, pair in enumerate(ranks) for rank in pair]
    limits = Ranks(wanted, numel)
    if not parameters["rescale"]:
        return limits

    def norms(done: list[Measurement]) -> Sums:
        return norm_sums(lambda deltas, place: _trim(deltas, density, limits))

    return InTurn(limits, norms)


def _ranks(numel: int, keep: float, outliers: float) -> tuple[int, int]:
    """Return the ranks of the largest and the smallest element that stay; 0 for none."""
    kept = int(keep * numel)
    if keep >= 1 or kept == 0:
        return 0, 0
    above = min(int(outliers * numel), numel - kept)
    return above + 1, above + kept


def _trim(deltas: list[Tensor], density: Sequence[float], limits: Ranks) -> None:
    for model, (delta, keep) in enumerate(zip(deltas, density, strict=True)):
        if keep < 1:
            largest, smallest = limits.values[2 * model : 2 * model + 2]
            drop_outliers(delta, largest)
            trim(delta, smallest)


def _sparse(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Ranks | InTurn | None,
    density: Sequence[float],
) -> tuple[list[Tensor], list[float] | None]:
    """Return the trimmed task vectors, and what to rescale them by."""
    deltas = task_vectors(tensors, base)
    if isinstance(measured, InTurn):
        limits, norms = measured.done
        _trim(deltas, density, cast(Ranks, limits))
        return deltas, norm_factors(cast(Sums, norms))
    if measured is not None:
        _trim(deltas, density, measured)
    return deltas, None


@merge_method(
    "breadcrumbs",
    measure=_measure,
    passes=2,
    measure_if=_trims,
    paper="2312.06795",
)
def breadcrumbs(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Ranks | InTurn | None,
    *,
    weight: Weight,
    density: Density,
    gamma: Gamma,
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    rescale: bool = False,
    int8_mask: bool = False,
) -> Tensor:
    """Model Breadcrumbs: θ₀ + λ Σ wᵢδᵢ, without the smallest changes and the outliers.

    Of the n magnitudes of each task vector, the `gamma` · n largest go, then all but the `density`
    · n largest of the others; both are rounded down. Where that leaves fewer than `density` · n,
    fewer outliers go. What equals the largest or the smallest of those that stay, stays as well.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        measured: largest and smallest magnitude that stay, for each model; and the norms.
        weight: wᵢ, of each model.
        density: share of a task vector's elements that stays, in [0, 1]; 1 keeps all of them.
        gamma: share of a task vector's elements that are outliers, in [0, 1].
        normalize: divide by Σ wᵢ, unless that is zero.
        scaling_factor: λ.
        rescale: give each trimmed task vector the Σ|δ| back that it had; not in the paper.
        int8_mask: without effect: no masks are stored here.
    """
    deltas, factors = _sparse(tensors, base, measured, density)
    return add_sum(deltas, base, weight, normalize, scaling_factor, factors)


@merge_method(
    "breadcrumbs_ties",
    measure=_measure,
    passes=2,
    measure_if=_trims,
    paper="2312.06795",
)
def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Ranks | InTurn | None,
    *,
    weight: Weight,
    density: Density,
    gamma: Gamma,
    majority_sign_method: Election = "total",
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    rescale: bool = False,
    int8_mask: bool = False,
) -> Tensor:
    """Model Breadcrumbs with the sign election of TIES.

    As `breadcrumbs`, but of the elements that stay only those count whose sign is elected, as in
    `ties`.

    Args:
        tensors, base, measured: as for `breadcrumbs`.
        weight, density, gamma, scaling_factor, rescale, int8_mask: as for `breadcrumbs`.
        majority_sign_method: total: the sign of Σ wᵢδᵢ; frequency: the sign that more models have.
        normalize: divide by the weights of the models that agree.
    """
    deltas, factors = _sparse(tensors, base, measured, density)
    return add_elected(
        deltas, base, weight, normalize, scaling_factor, majority_sign_method, factors
    )
