"""DELLA: elements are dropped at random, large ones more rarely, by their ranks within each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray

from streammerge.errors import RecipeError
from streammerge.methods import merge_method
from streammerge.methods.combining import Election, add_elected, add_sum, task_vectors
from streammerge.methods.measuring import Sums
from streammerge.methods.parameters import Bounds, Density, Lambda, PerModel, Weight
from streammerge.methods.place import Place
from streammerge.methods.ranks import magnitude_keys
from streammerge.methods.sparsifying import RescaleBy, needs_norms, norm_factors, norm_sums

if TYPE_CHECKING:
    from torch import Tensor

Epsilon = Annotated[Sequence[float], PerModel(0.15), Bounds(0, 0.5, open_high=True)]
"""How far the probabilities of a row reach to both sides of its density."""


def _check(parameters: Mapping[str, Any]) -> None:
    for keep, spread in zip(parameters["density"], parameters["epsilon"], strict=True):
        if 0 < keep < 1 and not 0 < keep - spread <= keep + spread < 1:
            raise RecipeError(
                f"a density of {keep:g} with an epsilon of {spread:g} makes probabilities from "
                f"{keep - spread:g} to {keep + spread:g}",
                "Choose an epsilon that keeps density ± epsilon between 0 and 1.",
            )


def _norms(models: int, shape: tuple[int, ...], parameters: Mapping[str, Any]) -> Sums:
    density, epsilon, seed = (parameters[key] for key in ("density", "epsilon", "seed"))
    return norm_sums(lambda deltas, place: _prune(deltas, place, density, epsilon, seed, False))


def _prune(
    deltas: list[Tensor],
    place: Place,
    density: Sequence[float],
    epsilon: Sequence[float],
    seed: int,
    rescale: bool,
) -> None:
    """Drop elements by chance, in place, and divide the others by their probability to stay."""
    for model, (delta, keep, spread) in enumerate(zip(deltas, density, epsilon, strict=True)):
        if keep <= 0:
            delta.zero_()
        elif keep < 1:
            probability = _probabilities(delta, keep, spread)
            delta.mul_(place.uniform(seed, model, delta).lt_(probability))
            if rescale:
                delta.div_(probability)


def _probabilities(delta: Tensor, keep: float, spread: float) -> Tensor:
    """Return each element's probability to stay, linear in its rank within its row.

    Args:
        delta: rows of elements.
        keep, spread: from keep − spread for the smallest magnitude to keep + spread for the
            largest.
    """
    import torch

    length = delta.shape[1]
    steps = np.linspace(keep - spread, keep + spread, length) if length > 1 else np.array([keep])
    found = np.empty(delta.numel(), np.float32 if delta.dtype is torch.float32 else np.float64)
    order = _by_magnitude(magnitude_keys(delta.cpu().float().clone()).reshape(delta.shape))
    found[order.reshape(-1)] = np.tile(steps.astype(found.dtype), delta.shape[0])
    return torch.from_numpy(found).to(delta.device).view(delta.shape)


def _by_magnitude(keys: NDArray[np.signedinteger[Any]]) -> NDArray[np.int64]:
    """Return the flat indices of a block, sorted by key within each row, and equal keys by index.

    A key and an index make one integer, which is sorted 10 times as fast as by a stable sort.

    Args:
        keys: of fp32 magnitudes; finer differences do not count.
    """
    indices = np.arange(keys.size, dtype=np.int64).reshape(keys.shape)
    packed = (keys.astype(np.int64) << 32) | indices
    packed.sort(axis=1)
    return packed & 0xFFFFFFFF


def _factors(measured: Sums | None) -> list[float] | None:
    return None if measured is None else norm_factors(measured)


@merge_method(
    "della",
    granularity="row",
    measure=_norms,
    passes=1,
    measure_if=needs_norms,
    check=_check,
    paper="2406.11617",
)
def della(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Sums | None,
    place: Place,
    *,
    weight: Weight,
    density: Density,
    epsilon: Epsilon,
    majority_sign_method: Election = "total",
    normalize: bool = True,
    scaling_factor: Lambda = 1.0,
    rescale: bool = True,
    rescale_by: RescaleBy = "density",
    seed: int = 0,
    int8_mask: bool = False,
) -> Tensor:
    """DELLA: drop by magnitude and chance, elect signs, merge what agrees.

    As `dare_ties`, but an element stays with a probability that rises with the rank of its
    magnitude in its row, from `density` − `epsilon` to `density` + `epsilon`, and is divided by it.
    Equal magnitudes rank by their place. A row is what lies along the last axis, one filter of a
    convolution, or a whole vector.

    Args:
        tensors, base: rows of the models and of the base model, of shape [rows, elements].
        measured: the norms, for `rescale_by: l1`.
        place: where the rows lie.
        weight: wᵢ, of each model.
        density: share of the elements that stay on average, in [0, 1].
        epsilon: half the range of the probabilities; density ± epsilon must lie within (0, 1). What
            the paper calls ε is the whole range, twice this; here it is as in mergekit.
        majority_sign_method: total: the sign of Σ wᵢδᵢ; frequency: the sign that more models have.
        normalize: divide by the weights of the models that agree.
        scaling_factor: λ.
        rescale: divide elements by their probability to stay.
        rescale_by: density: by each element's own probability, as in the paper; l1: by what gives
            each task vector the Σ|δ| back that it had in this tensor, as in mergekit.
        seed: of the random numbers; see `dare_linear`.
        int8_mask: without effect: no masks are stored here.
    """
    deltas = task_vectors(tensors, base)
    _prune(deltas, place, density, epsilon, seed, rescale and rescale_by == "density")
    return add_elected(
        deltas,
        base,
        weight,
        normalize,
        scaling_factor,
        majority_sign_method,
        _factors(measured),
    )


@merge_method(
    "della_linear",
    granularity="row",
    measure=_norms,
    passes=1,
    measure_if=needs_norms,
    check=_check,
    paper="2406.11617",
)
def della_linear(
    tensors: Sequence[Tensor],
    base: Tensor,
    measured: Sums | None,
    place: Place,
    *,
    weight: Weight,
    density: Density,
    epsilon: Epsilon,
    normalize: bool = False,
    scaling_factor: Lambda = 1.0,
    rescale: bool = True,
    rescale_by: RescaleBy = "density",
    seed: int = 0,
    int8_mask: bool = False,
) -> Tensor:
    """DELLA without the election: drop by magnitude and chance, then task arithmetic.

    Args:
        tensors, base, measured, place: as for `della`.
        weight, density, epsilon, scaling_factor, rescale, rescale_by: as for `della`.
        seed, int8_mask: as for `della`.
        normalize: divide by Σ wᵢ, unless that is zero.
    """
    deltas = task_vectors(tensors, base)
    _prune(deltas, place, density, epsilon, seed, rescale and rescale_by == "density")
    return add_sum(deltas, base, weight, normalize, scaling_factor, _factors(measured))
