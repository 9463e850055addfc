"""DARE: elements of the task vectors are dropped at random, and what stays is rescaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streammerge.methods import merge_method
from streammerge.methods.combining import Election, add_sum, task_vectors
from streammerge.methods.measuring import Sums
from streammerge.methods.parameters import Density, Lambda, Weight
from streammerge.methods.place import Place
from streammerge.methods.sparsifying import RescaleBy, needs_norms, norm_factors, norm_sums

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat


def _norms(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Sums:
    density, seed = parameters["density"], parameters["seed"]
    return norm_sums(lambda deltas, place: _drop(deltas, place, density, seed))


def _drop(deltas: list[Tensor], place: Place, density: Sequence[float], seed: int) -> None:
    for model, (delta, keep) in enumerate(zip(deltas, density, strict=True)):
        if keep <= 0:
            delta.zero_()
        elif keep < 1:
            delta.mul_(place.chosen(seed, model, keep, delta))


def _factors(measured: Sums | None, density: Sequence[float], rescale: bool) -> list[float] | None:
    if measured is not None:
        return norm_factors(measured)
    return [1 / keep if keep else 1.0 for keep in density] if rescale else None


@merge_method(
    "dare_linear",
    aliases=("dare", "dare/task_arithmetic", "dare/simple_average"),
    measure=_norms,
    passes=1,
    measure_if=needs_norms,
    paper="2311.03099",
)
def dare_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Sums | None,
    place: Place,
    *,
    weight: Weight,
    density: Density,
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    rescale: bool = True,
    rescale_by: RescaleBy = "density",
    seed: int = 0,
    int8_mask: bool = False,
) -> Tensor:
    """DARE with task arithmetic: θ₀ + λ Σ wᵢ(δᵢ ⊙ mᵢ)/pᵢ, with mᵢ 1 at random with probability pᵢ.

    The random numbers depend on the seed, the tensor's name, the model's place in the list and the
    element alone, so the same recipe gives the same bytes everywhere.

    Args:
        tensors, base: blocks of the models and of the base model, of one shape.
        measured: the norms, for `rescale_by: l1`.
        place: where the blocks lie.
        weight: wᵢ, of each model.
        density: pᵢ in [0, 1], to the nearest multiple of 2⁻¹⁶: how many elements stay.
        normalize: divide by Σ wᵢ, unless that is zero.
        scaling_factor: λ.
        rescale: divide by pᵢ.
        rescale_by: density: by pᵢ, as in the paper; l1: by what gives each task vector the Σ|δ|
            back that it had in this tensor, as in mergekit, which comes near 1/pᵢ in large tensors.
        seed: of the random numbers.
        int8_mask: without effect: no masks are stored here.
    """
    deltas = task_vectors(tensors, base)
    _drop(deltas, place, density, seed)
    factors = _factors(measured, density, rescale)
    return add_sum(deltas, base, weight, normalize, scaling_factor, factors)


@merge_method(
    "dare_ties",
    measure=_norms,
    passes=1,
    measure_if=needs_norms,
    paper="2311.03099",
)
def dare_ties(
    tensors: Sequence[Flat],
    base: Flat,
    measured: Sums | None,
    place: Place,
    out: Flat,
    workspace: Workspace,
    *,
    weight: Weight,
    density: Density,
    majority_sign_method: Election = "total",
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    rescale: bool = True,
    rescale_by: RescaleBy = "density",
    seed: int = 0,
    int8_mask: bool = False,
) -> bool:
    """DARE with the sign election of TIES: elements are dropped at random instead of trimmed.

    As `dare_linear`, but of the elements that stay only those count whose sign is elected, as in
    `ties`.

    Args:
        tensors, base: flat stretches of the models and of the base model; never written to.
        measured, place: as for `dare_linear`.
        out, workspace: where the result goes, and where temporaries come from.
        weight, density, scaling_factor, rescale, rescale_by, seed, int8_mask: as for `dare_linear`.
        majority_sign_method: total: the sign of Σ wᵢδᵢ; frequency: the sign that more models have.
        normalize: divide by the weights of the models that agree.
    """
    from streammerge.methods.electing import Rules, Voter, merge_elected

    factors = _factors(measured, density, rescale) or [1.0] * len(tensors)
    voters = [
        Voter(tensor, weight[i], factors[i], chance=density[i], stream=i)
        for i, tensor in enumerate(tensors)
        if density[i] > 0
    ]
    rules = Rules(majority_sign_method, normalize, scaling_factor, seed)
    return merge_elected(voters, base, place, rules, out, workspace)
