"""Elections of signs on stretches as they were read: the kernel of TIES and DARE-TIES, in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streammerge import native
from streammerge.methods.averaging import Terms, sum_terms
from streammerge.methods.combining import Election, add_elected, integers, task_vectors
from streammerge.methods.finite import all_finite
from streammerge.methods.place import Place, chance
from streammerge.methods.rounding import round_once
from streammerge.methods.sparsifying import trim
from streammerge.methods.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Voter:
    """A model in an election, and what stays of its task vector.

    Attributes:
        tensor: a flat stretch of the model.
        weight: of the model.
        factor: what its task vector is rescaled by; it does not count as weight.
        limit: the smallest magnitude that stays; NaN for no more than Inf and NaN.
        chance: with which an element stays, in (0, 1].
        stream: of random numbers, if the chance is below 1.
    """

    tensor: Tensor
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
    voters: Sequence[Voter],
    base: Tensor,
    place: Place,
    rules: Rules,
    out: Tensor,
    workspace: Workspace,
) -> bool:
    """Write θ₀ + λ Σ wᵢfᵢδᵢmᵢ; return whether all results are finite.

    Args:
        voters: the models of which anything stays.
        base: θ₀, flat and as long as all others, in any float dtype.
        place: where the stretch lies.
        rules: of the election.
        out: where the result goes.
        workspace: where temporaries come from.
    """
    if not voters:
        return sum_terms([base], out, workspace, Terms([1.0]))
    if native.serves((*(voter.tensor for voter in voters), base, out)):
        return _merge_natively(voters, base, place, rules, out)
    for block in workspace.blocks(out.numel(), torch.float64):
        deltas, start = _task_vectors(voters, base, place, rules.seed, block, workspace)
        weights = [voter.weight for voter in voters]
        factors = [voter.factor for voter in voters]
        settings = rules.normalize, rules.scaling_factor, rules.election
        result = add_elected(deltas, start, weights, *settings, factors)
        round_once(result, out[block], workspace)
    return all_finite(out)


def _merge_natively(
    voters: Sequence[Voter], base: Tensor, place: Place, rules: Rules, out: Tensor
) -> bool:
    weights: Sequence[float] = [voter.weight for voter in voters]
    if rules.normalize:
        weights = integers(tuple(weights))
    ballots = [
        native.Voter(
            *(voter.tensor, weight, weight * voter.factor),
            limit=math.inf if math.isnan(voter.limit) else voter.limit,
            below=chance(voter.chance) if voter.chance < 1 else 2**16,
            generator=place.generator(rules.seed, voter.stream),
        )
        for voter, weight in zip(voters, weights, strict=True)
    ]
    by_count = rules.election == "frequency"
    settings = rules.scaling_factor, by_count, rules.normalize
    return native.merge_elected(ballots, base, place.first, *settings, out)


def _task_vectors(
    voters: Sequence[Voter],
    base: Tensor,
    place: Place,
    seed: int,
    block: slice,
    workspace: Workspace,
) -> tuple[list[Tensor], Tensor]:
    """Return copies of what stays of the task vectors of a block, and of the base model's."""

    def copy(name: str, tensor: Tensor) -> Tensor:
        part = tensor[block]
        return workspace.buffer(name, torch.float64, part.numel()).copy_(part)

    start, part = copy("base", base), place.part(block)
    tensors = [copy(f"input {i}", voter.tensor) for i, voter in enumerate(voters)]
    deltas = task_vectors(tensors, start)
    for delta, voter in zip(deltas, voters, strict=True):
        trim(delta, voter.limit)
        if voter.chance < 1:
            delta.mul_(part.chosen(seed, voter.stream, voter.chance, delta))
    return deltas, start
