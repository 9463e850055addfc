"""What the compiled loops do, done by torch with the same bits: on devices, and without a compiler.

Each function takes the steps of its namesake in kernels.c, in fp64 on blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from streammerge.methods.combining import add_elected, task_vectors
from streammerge.methods.finite import all_finite
from streammerge.methods.place import Place
from streammerge.methods.rounding import round_once
from streammerge.methods.sparsifying import trim
from streammerge.methods.workspace import Workspace

if TYPE_CHECKING:
    from streammerge.methods.averaging import Terms
    from streammerge.methods.electing import Rules, Voter


def sum_terms(tensors: Sequence[Tensor], out: Tensor, workspace: Workspace, terms: Terms) -> bool:
    """Do what `averaging.sum_terms` says."""
    for block in workspace.blocks(out.numel(), torch.float64):
        inputs = [tensor[block] for tensor in tensors]
        total = workspace.buffer("sum", torch.float64, inputs[0].numel()).copy_(inputs[0])
        total.mul_(terms.weights[0])
        for tensor, weight in zip(inputs[1:], terms.weights[1:], strict=True):
            # Widened first: adding across dtypes is slower than both steps together.
            term = workspace.buffer("term", torch.float64, tensor.numel()).copy_(tensor)
            total.add_(term.mul_(weight))
        _divide(total, terms.divisor)
        round_once(total, out[block], workspace)
    return all_finite(out)


def _divide(total: Tensor, divisor: float) -> None:
    if math.frexp(divisor)[0] == 0.5:  # a power of two: exact, and faster than a division
        total.mul_(1 / divisor)
    elif total.device.type == "cpu":
        total.div_(divisor)
    else:  # by a Python number, other devices multiply with a rounded reciprocal
        total.div_(torch.tensor(divisor, dtype=total.dtype, device=total.device))


def merge_elected(
    voters: Sequence[Voter[Tensor]],
    base: Tensor,
    place: Place,
    rules: Rules,
    out: Tensor,
    workspace: Workspace,
) -> bool:
    """Do what `electing.merge_elected` says."""
    for block in workspace.blocks(out.numel(), torch.float64):
        deltas, start = _task_vectors(voters, base, place.part(block), rules.seed, block, workspace)
        weights = [voter.weight for voter in voters]
        factors = [voter.factor for voter in voters]
        settings = rules.normalize, rules.scaling_factor, rules.election
        result = add_elected(deltas, start, weights, *settings, factors)
        round_once(result, out[block], workspace)
    return all_finite(out)


def _task_vectors(
    voters: Sequence[Voter[Tensor]],
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

    start = copy("base", base)
    tensors = [copy(f"input {i}", voter.tensor) for i, voter in enumerate(voters)]
    deltas = task_vectors(tensors, start)
    for delta, voter in zip(deltas, voters, strict=True):
        trim(delta, voter.limit)
        if voter.chance < 1:
            delta.mul_(place.chosen(seed, voter.stream, voter.chance, delta))
    return deltas, start
