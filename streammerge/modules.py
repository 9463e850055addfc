"""Merging from Python: modules and state dicts in memory, or paths of checkpoints.

In memory and on disk the plan, the pipeline and the arithmetic are the same, and so are the bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from streammerge import api
from streammerge.errors import RecipeError
from streammerge.inmemory.recipes import make_recipe
from streammerge.options import AverageOptions, Reference
from streammerge.report import Result

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BASE = "_pretrained_"
"""The name under which `merge_modules` looks for the base model."""

M = TypeVar("M", bound="nn.Module | Mapping[str, Tensor]")
Weights = Sequence[float | int | str]


class MemoryOptions(TypedDict, total=False):
    """What can be said of every merge in memory.

    Attributes:
        dtype: of merged tensors: auto (each keeps the first model's), or a name or torch dtype.
        keep: globs of tensor names to take from the first model.
        device: where blocks are merged; the models may lie anywhere.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.
    """

    dtype: str | torch.dtype
    keep: str | Sequence[str]
    device: str
    allow_nonfinite: bool


class ModelOptions(MemoryOptions, total=False):
    """The options of an average in memory."""

    weights: Weights | None


@overload
def average(
    models: Iterable[Reference], out: Reference, **options: Unpack[AverageOptions]
) -> Result: ...
@overload
def average(models: Iterable[M], out: None = None, **options: Unpack[ModelOptions]) -> M: ...
def average(models: Iterable[Any], out: Reference | None = None, **options: Any) -> Any:
    """Return the average of models in memory, or write that of checkpoints to a folder.

    The mean of each tensor is correctly rounded to its dtype, in memory as on disk. Inputs are
    never changed.

    Args:
        models: torch modules of one class, or state dicts with the same tensors; or two or more
            paths of checkpoints.
        out: for paths: the folder to write.
        options: for models in memory: `weights`, one for each model in any proportion, and
            `dtype`, `keep`, `device` and `allow_nonfinite` as in `merge_modules`. For paths: see
            `api.average`.

    Returns:
        a new module or state dict, like the first model in everything but its merged tensors; of
        one model, a copy. For paths: what was written.

    Raises:
        StreammergeError: with what is wrong, in which tensor of which model, and what to do.
    """
    given = _listed(models)
    if all(isinstance(model, str | os.PathLike) for model in given):
        if out is None:
            raise RecipeError(
                "there is no folder for the average of these checkpoints",
                "Write average(models, out); or load them, and average the models.",
            )
        return api.average(given, out, **options)
    if out is not None:
        raise RecipeError(
            "models in memory are averaged to a model in memory, not to a folder",
            "Leave out= away, and save the result, e.g. `merged.save_pretrained(out)`.",
        )
    for name in options.keys() - ModelOptions.__optional_keys__:
        raise RecipeError(
            f"{name}= has no meaning for models in memory",
            f"Known are {', '.join(sorted(ModelOptions.__optional_keys__))}.",
        )
    return _average(given, **options)


def weighted_average(
    models: Iterable[M],
    weights: Weights,
    *,
    normalize: bool = True,
    **options: Unpack[MemoryOptions],
) -> M:
    """Return Σ wᵢθᵢ / Σ wᵢ of models in memory, or with `normalize=False` Σ wᵢθᵢ.

    Args:
        models: torch modules of one class, or state dicts with the same tensors.
        weights: one for each model; decimals count as written.
        normalize: divide by the sum of the weights.
        options: see `merge_modules`.

    Raises:
        StreammergeError: with what is wrong, in which tensor of which model, and what to do.
    """
    merged: M = _average(_listed(models), weights=weights, normalize=normalize, **options)
    return merged


def merge_modules(
    models: Mapping[str, M],
    method: str,
    *,
    base: M | None = None,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    keep: str | Sequence[str] = (),
    device: str = "cpu",
    allow_nonfinite: bool = False,
    **parameters: Any,
) -> M:
    """Return the merge of models in memory by any method.

    Args:
        models: torch modules of one class, or state dicts with the same tensors, by a name of your
            choice; the one called "_pretrained_" is the base model.
        method: a name that `streammerge methods` lists.
        base: the base model, if it is not among `models`.
        seed: of methods that draw random numbers.
        dtype: of merged tensors: auto (each keeps the first model's), float64, float32, float16 or
            bfloat16.
        keep: globs of tensor names to take from the first model.
        device: where blocks are merged; the models may lie anywhere.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.
        parameters: of the method; a mapping from names of models gives each its own value, a list
            is a gradient from the first layer to the last.

    Returns:
        a new module or state dict, like the base model (or the first, if there is none) in
        everything but its merged tensors.

    Raises:
        StreammergeError: with what is wrong, in which tensor of which model, and what to do.
    """
    given: Any = models
    named = dict(given) if isinstance(given, Mapping) else {}
    if not named.keys() - {BASE}:
        raise RecipeError(
            "merge_modules takes a mapping from names to models",
            f"Write {{'a': model_a, 'b': model_b}}, with a base model as {BASE!r}.",
        )
    if base is not None and BASE in named:
        raise RecipeError("there are two base models", f"Give base= or {BASE!r}, not both.")
    base = named.pop(BASE, base)
    options = MemoryOptions(dtype=dtype, keep=keep, device=device, allow_nonfinite=allow_nonfinite)
    merged: M = _merge(named, base, method, parameters, options, seed)
    return merged


def _listed(models: Iterable[Any]) -> list[Any]:
    """Return the models as a list, refusing what is a single one or none."""
    if isinstance(models, str | os.PathLike | Mapping) or hasattr(models, "state_dict"):
        raise RecipeError(
            f"the models to average are one {type(models).__name__}, not a list",
            "Write average([model_a, model_b]); merge_modules takes them by name.",
        )
    given = list(models)
    if not given:
        raise RecipeError("there are no models to average", "Give at least one.")
    return given


def _average(
    models: Sequence[Any],
    *,
    weights: Weights | None = None,
    normalize: bool = True,
    **options: Unpack[MemoryOptions],
) -> Any:
    named = {f"models[{index}]": model for index, model in enumerate(models)}
    parameters: dict[str, Any] = {"normalize": normalize}
    if weights is not None:
        if len(weights) != len(named):
            count = "1 weight" if len(weights) == 1 else f"{len(weights)} weights"
            raise RecipeError(f"{count} for {len(named)} models", "Give one for each, in order.")
        parameters["weight"] = dict(zip(named, weights, strict=True))
    return _merge(named, None, "average", parameters, options)


def _merge(
    named: Mapping[str, Any],
    base: Any,
    method: str,
    parameters: Mapping[str, Any],
    options: MemoryOptions,
    seed: int = 0,
) -> Any:
    from streammerge.inmemory.merge import merge  # torch is loaded here and not before

    recipe = make_recipe(
        list(named),
        None if base is None else BASE,
        method,
        parameters,
        options.get("dtype", "auto"),
        seed,
    )
    return merge(
        named if base is None else {**named, BASE: base},
        recipe,
        like=next(iter(named)) if base is None else BASE,
        keep=options.get("keep", ()),
        device=options.get("device", "cpu"),
        allow_nonfinite=options.get("allow_nonfinite", False),
    )
