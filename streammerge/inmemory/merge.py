"""Models in memory → a new one of the same kind: open, plan and execute, as for files."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import torch

from streammerge.budget import make_layout
from streammerge.errors import (
    CoverageError,
    NonFiniteError,
    PlanError,
    RecipeError,
    StreammergeError,
    TensorsDifferError,
    UnsupportedError,
    printable,
)
from streammerge.execute import Pipeline
from streammerge.formats.memory import StateDictCheckpoint
from streammerge.inmemory.contents import Model, Tensors
from streammerge.inmemory.models import Models, hold_together
from streammerge.inmemory.results import new_like
from streammerge.inmemory.tensorbytes import TensorBytes
from streammerge.lanes import choose_device
from streammerge.needs import MiB
from streammerge.outputs.memory import MemoryOutput
from streammerge.plan import Plan
from streammerge.planning import make_plan
from streammerge.recipe import Recipe
from streammerge.tensors import torch_dtype

_NO_LIMIT = 2**63
_WINDOW = 2 * MiB  # what is merged stays in the cache until it is copied to its tensor
_REMEDIES: dict[type[StreammergeError], str] = {  # in the words of Python, not of the command line
    CoverageError: "Merge models of one architecture; or take tensors from the first model with "
    "keep=[GLOB].",
    TensorsDifferError: "Say that the first model's counts, e.g. with "
    "keep=['*.num_batches_tracked'].",
    NonFiniteError: "Look at the model or choose a wider dtype=; or let such values pass with "
    "allow_nonfinite=True.",
    PlanError: "Merge with device='cpu': the bits are the same.",
}


def merge(
    models: Mapping[str, Model],
    recipe: Recipe,
    *,
    like: str,
    keep: str | Sequence[str] = (),
    device: str = "cpu",
    allow_nonfinite: bool = False,
) -> Model:
    """Return the merge of models as a new one of the same kind; none of them is changed.

    Args:
        models: by label, in the order of the recipe's inputs.
        recipe: what to do, with the labels as references.
        like: label of the model that the result is like in all but its merged tensors.
        keep: globs of tensor names to take from the first model.
        device: where blocks are merged.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.

    Raises:
        StreammergeError: with what is wrong, in which tensor of which model, and what to do.
    """
    held = hold_together(models, like)
    kept = {held.tied[name] for name in _matching(held.tied, keep)}
    if not _has_floats(held, kept):
        return _copy(held, kept)
    checkpoints = [
        StateDictCheckpoint(
            label,
            {name: held.infos[label][name] for name in held.leaders},
            {name: TensorBytes(tensors[name]) for name in held.leaders},
        )
        for label, tensors in held.tensors.items()
    ]
    exact_names = tuple(glob.escape(name) for name in sorted(kept))
    try:
        plan = make_plan(recipe.model_copy(update={"keep": exact_names}), checkpoints, _NO_LIMIT)
        dtypes = {tensor.name: torch_dtype(tensor.dtype) for tensor in plan.tensors}
        result, new = new_like(held, dtypes)
        _execute(plan, checkpoints, new, device, allow_nonfinite)
    except tuple(_REMEDIES) as error:
        error.remedy = next(text for kind, text in _REMEDIES.items() if isinstance(error, kind))
        raise
    return result


def _matching(names: Iterable[str], globs: str | Sequence[str]) -> set[str]:
    found: set[str] = set()
    for pattern in [globs] if isinstance(globs, str) else globs:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise RecipeError(
                f"keep: {pattern!r} matches no tensor", "The names are those of `state_dict()`."
            )
        found |= matches
    return found


def _has_floats(held: Models, kept: set[str]) -> bool:
    """Whether there is anything to merge.

    Raises:
        UnsupportedError: there are numbers that cannot be.
    """
    kinds = set()
    for name in held.leaders:
        if name in kept:
            continue
        kind = held.infos[held.like][name].kind
        if kind == "complex":
            raise UnsupportedError(
                f"{printable(name)} in {held.like} is complex, and no method merges such numbers",
                f"Take it from the first model with keep=[{name!r}].",
            )
        kinds.add(kind)
    return "float" in kinds


def _copy(held: Models, kept: set[str]) -> Model:
    """Return a copy where there is nothing to merge; what is not kept must be equal."""
    (first, ours), *others = held.tensors.items()
    for name in set(held.leaders) - kept:
        for label, theirs in others:
            if not torch.equal(ours[name], theirs[name]):
                raise TensorsDifferError(
                    f"the {ours[name].dtype} tensor {printable(name)} differs between {first} "
                    f"and {label}: integers have no average",
                    _REMEDIES[TensorsDifferError],
                )
    result, new = new_like(held, {name: ours[name].dtype for name in held.leaders})
    for name, tensor in new.items():
        tensor.copy_(ours[name].detach())
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
        device=choose_device("cpu" if device == "auto" else device),
        allow_nonfinite=allow_nonfinite,
    ).run()
