"""TIES: small changes are trimmed, and the models vote on the sign of each element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from streammerge.methods import merge_method
from streammerge.methods.combining import Election
from streammerge.methods.measuring import InTurn, Measurement, Sums
from streammerge.methods.parameters import Density, Lambda, Weight
from streammerge.methods.place import Place
from streammerge.methods.ranks import Ranks
from streammerge.methods.sparsifying import norm_factors, norm_sums, trim

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat


def _trims(parameters: Mapping[str, Any]) -> bool:
    return any(0 < keep < 1 for keep in parameters["density"])


def _measure(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Measurement:
    """Find the smallest magnitude that stays of each model; then, to rescale, the norms."""
    density, numel = parameters["density"], math.prod(shape)
    ranks = [max(1, int(keep * numel)) if 0 < keep < 1 else 0 for keep in density]
    limits = Ranks(list(enumerate(ranks)), numel)
    if not parameters["rescale"]:
        return limits

    def norms(done: list[Measurement]) -> Sums:
        return norm_sums(lambda deltas, place: _trim(deltas, density, limits.values))

    return InTurn(limits, norms)


def _trim(deltas: list[Tensor], density: Sequence[float], limits: Sequence[float]) -> None:
    for delta, keep, limit in zip(deltas, density, limits, strict=True):
        if keep <= 0:
            delta.zero_()
        elif keep < 1:
            trim(delta, limit)


@merge_method(
    "ties",
    aliases=("ties_merging", "linear/ties_merging_for_causallm"),
    measure=_measure,
    passes=2,
    measure_if=_trims,
    drops_zero=True,
    paper="2306.01708",
)
def ties(
    tensors: Sequence[Flat],
    base: Flat,
    measured: Ranks | InTurn | None,
    place: Place,
    out: Flat,
    workspace: Workspace,
    *,
    weight: Weight,
    density: Density,
    majority_sign_method: Election = "total",
    normalize: bool = True,
    scaling_factor: Lambda = 1.0,
    rescale: bool = False,
    int8_mask: bool = False,
) -> bool:
    """TIES: trim, elect signs, merge what agrees: θ₀ + λ Σ wᵢδᵢmᵢ / Σ wᵢmᵢ.

    Of each task vector the `density` · n largest of its n magnitudes stay, rounded down and at
    least one, with all that equal the smallest of those. The sign of an element is elected over the
    models, and mᵢ is 1 for those that have it; between equal votes, the positive one wins.

    Args:
        tensors, base: flat stretches of the models and of the base model; never written to.
        measured: the smallest magnitude that stays, for each model; and the norms, to rescale.
        place: where the stretches lie.
        out, workspace: where the result goes, and where temporaries come from.
        weight: wᵢ, of each model.
        density: share of a task vector's elements that stays, in [0, 1].
        majority_sign_method: total: the sign of Σ wᵢδᵢ; frequency: the sign that more models have.
        normalize: divide by the weights of the models that agree.
        scaling_factor: λ.
        rescale: give each trimmed task vector the Σ|δ| back that it had; not in the paper.
        int8_mask: without effect: no masks are stored here.
    """
    from streammerge.methods.electing import Rules, Voter, merge_elected

    limits, factors = _limits(measured, density), [1.0] * len(tensors)
    if isinstance(measured, InTurn):
        factors = norm_factors(cast(Sums, measured.done[1]))
    voters = [
        Voter(tensor, weight[i], factors[i], limits[i])
        for i, tensor in enumerate(tensors)
        if density[i] > 0
    ]
    rules = Rules(majority_sign_method, normalize, scaling_factor)
    return merge_elected(voters, base, place, rules, out, workspace)


def _limits(measured: Ranks | InTurn | None, density: Sequence[float]) -> Sequence[float]:
    """Return the smallest magnitude that stays of each model; 0 where all of them do."""
    if measured is None:
        return [0.0] * len(density)
    ranks = cast(Ranks, measured.done[0]) if isinstance(measured, InTurn) else measured
    return [limit if keep < 1 else 0.0 for limit, keep in zip(ranks.values, density, strict=True)]
