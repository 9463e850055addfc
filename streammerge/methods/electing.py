"""Elections of signs on stretches as they were read: the kernel of TIES and DARE-TIES, in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from streammerge import native
from streammerge.methods.averaging import Terms, sum_terms
from streammerge.methods.combining import Election, integers
from streammerge.methods.place import Place, chance
from streammerge.methods.workspace import Workspace
from streammerge.stretch import Stretch

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.stretch import Flat

_Flat = TypeVar("_Flat", bound="Flat", covariant=True)


@dataclass(frozen=True)
class Voter(Generic[_Flat]):
    """A model in an election, and what stays of its task vector.

    Attributes:
        tensor: flat elements of the model.
        weight: of the model.
        factor: what its task vector is rescaled by; it does not count as weight.
        limit: the smallest magnitude that stays; NaN for no more than Inf and NaN.
        chance: with which an element stays, in (0, 1].
        stream: of random numbers, if the chance is below 1.
    """

    tensor: _Flat
    weight: float
    factor: float = 1.0
    limit: float = 0.0
    chance: float = 1.0
    stream: int = 0


@dataclass(frozen=True, slots=True)
class Rules:
    """How an election is held; see `combining.add_elected`."""

    election: Election
    normalize: bool
    scaling_factor: float
    seed: int = 0


def merge_elected(
    voters: Sequence[Voter[Flat]],
    base: Flat,
    place: Place,
    rules: Rules,
    out: Flat,
    workspace: Workspace,
) -> bool:
    """Write θ₀ + λ Σ wᵢfᵢδᵢmᵢ; return whether all results are finite.

    Args:
        voters: the models of which anything stays.
        base: θ₀, flat and as long as all others, in any float dtype.
        place: where the stretch lies.
        rules: of the election.
        out: where the result goes; a stretch where they are stretches.
        workspace: where temporaries come from.
    """
    if not voters:
        return sum_terms([base], out, workspace, Terms([1.0]))
    if isinstance(out, Stretch):
        natives = cast(Sequence[Voter[Stretch]], voters)
        return _merge_natively(natives, cast(Stretch, base), place, rules, out)
    from streammerge.methods import by_torch

    tensors = cast("Sequence[Voter[Tensor]]", voters)
    return by_torch.merge_elected(tensors, cast("Tensor", base), place, rules, out, workspace)


def _merge_natively(
    voters: Sequence[Voter[Stretch]], base: Stretch, place: Place, rules: Rules, out: Stretch
) -> bool:
    weights: Sequence[float] = [voter.weight for voter in voters]
    if rules.normalize:
        weights = integers(tuple(weights))
    ballots = [
        native.Voter(
            *(voter.tensor, weight, weight * voter.factor),
            limit=math.inf if math.isnan(voter.limit) else voter.limit,
            below=chance(voter.chance),
            generator=place.generator(rules.seed, voter.stream),
        )
        for voter, weight in zip(voters, weights, strict=True)
    ]
    by_count = rules.election == "frequency"
    settings = rules.scaling_factor, by_count, rules.normalize
    return native.merge_elected(ballots, base, place.first, *settings, out)
