"""Models in memory → a new one of the same kind: open, plan and execute, as for files."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch

from streammerge.budget import MiB, make_layout
from streammerge.errors import (
    CoverageError,
    NonFiniteError,
    RecipeError,
    StreammergeError,
    TensorsDifferError,
    UnsupportedError,
    printable,
)
from streammerge.execute import Pipeline
from streammerge.formats.memory import StateDictCheckpoint
from streammerge.inmemory.models import (
    Model,
    Tensors,
    check_alike,
    describe,
    require_same_names,
    tensors_of,
    tied_names,
)
from streammerge.inmemory.results import new_like
from streammerge.inmemory.tensorbytes import TensorBytes
from streammerge.lanes import choose_device
from streammerge.outputs.memory import MemoryOutput
from streammerge.plan import Plan
from streammerge.planning import make_plan
from streammerge.recipe import Recipe
from streammerge.tensors import torch_dtype

_NO_LIMIT = 2**63
_WINDOW = MiB  # what is merged stays in the cache until it is copied to its tensor
_REMEDIES: dict[type[StreammergeError], str] = {  # in the words of Python, not of the command line
    CoverageError: "Merge models of one architecture; or take tensors from the first model with "
    "keep=[GLOB].",
    TensorsDifferError: "Say that the first model's counts, e.g. with "
    "keep=['*.num_batches_tracked'].",
    NonFiniteError: "Look at the model or choose a wider dtype=; or let such values pass with "
    "allow_nonfinite=True.",
}


def merge(
    models: Mapping[str, Model],
    recipe: Recipe,
    *,
    keep: Sequence[str] = (),
    device: str = "cpu",
    allow_nonfinite: bool = False,
) -> Model:
    """Return the merge of models as a new one of the same kind; none of them is changed.

    Args:
        models: by label, in the order of the recipe's models; the first gives kind and flags.
        recipe: what to do, with the labels as references.
        keep: globs of tensor names to take from the first model.
        device: where blocks are merged.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.

    Raises:
        StreammergeError: with what is wrong, in which tensor of which model, and what to do.
    """
    check_alike(models)
    held = {label: tensors_of(label, model) for label, model in models.items()}
    require_same_names(held)
    infos = {label: describe(label, tensors) for label, tensors in held.items()}
    tied = tied_names(held)
    leaders = list(dict.fromkeys(tied.values()))
    first = next(iter(models))
    kept = {tied[name] for name in _matching(held[first], keep)}
    for name in leaders:
        if infos[first][name].kind == "complex" and name not in kept:
            raise UnsupportedError(
                f"{printable(name)} in {first} is complex, and no rule merges such numbers",
                f"Take it from the first model with keep=[{name!r}].",
            )
    merged = [n for n in leaders if infos[first][n].kind == "float" and n not in kept]
    if not merged:
        return _copy(models, held, tied, kept)
    checkpoints = [
        StateDictCheckpoint(
            label,
            {name: infos[label][name] for name in leaders},
            {name: TensorBytes(tensors[name]) for name in leaders},
        )
        for label, tensors in held.items()
    ]
    exact_names = tuple(glob.escape(name) for name in sorted(kept))
    try:
        plan = make_plan(recipe.model_copy(update={"keep": exact_names}), checkpoints, _NO_LIMIT)
        dtypes = {tensor.name: torch_dtype(tensor.dtype) for tensor in plan.tensors}
        result, new = new_like(first, models[first], held[first], tied, dtypes)
        _execute(plan, checkpoints, new, device, allow_nonfinite)
    except tuple(_REMEDIES) as error:
        raise type(error)(error.message, _REMEDIES[type(error)]) from error
    return result


def _matching(names: Iterable[str], globs: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [globs] if isinstance(globs, str) else globs:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise RecipeError(
                f"keep: {pattern!r} matches no tensor", "The names are those of `state_dict()`."
            )
        found |= matches
    return found


def _copy(
    models: Mapping[str, Model],
    held: Mapping[str, Tensors],
    tied: Mapping[str, str],
    kept: set[str],
) -> Model:
    """Return a copy of the first model where there is nothing to merge."""
    (first, tensors), *others = held.items()
    for name in set(tied.values()) - kept:
        for label, theirs in others:
            if not torch.equal(tensors[name], theirs[name]):
                raise TensorsDifferError(
                    f"the {tensors[name].dtype} tensor {printable(name)} differs between {first} "
                    f"and {label}: integers have no average",
                    _REMEDIES[TensorsDifferError],
                )
    dtypes = {name: tensors[name].dtype for name in tied.values()}
    result, new = new_like(first, models[first], tensors, tied, dtypes)
    for name, tensor in new.items():
        tensor.copy_(tensors[name])
    return result


def _execute(
    plan: Plan,
    checkpoints: Sequence[StateDictCheckpoint],
    new: Tensors,
    device: str,
    allow_nonfinite: bool,
) -> None:
    layout = make_layout(plan, checkpoints, None)
    output = MemoryOutput({name: TensorBytes(tensor) for name, tensor in new.items()})
    output.begin(plan)
    Pipeline(
        plan,
        checkpoints,
        replace(layout, window=min(layout.window, _WINDOW)),
        output,
        device=choose_device(device),
        allow_nonfinite=allow_nonfinite,
    ).run()
