"""The plainest recipe, as the command line and Python's `average` ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

from streammerge.errors import RecipeError, is_unicode, printable
from streammerge.methods.weights import exact_weights
from streammerge.recipe.entries import ModelEntry
from streammerge.recipe.recipe import OutDtype, Recipe
from streammerge.recipe.selection import Selection, expand, select
from streammerge.recipe.settings import Settings
from streammerge.schedules import coefficients


def average_recipe(
    models: Sequence[str],
    weights: Sequence[float | str] | None,
    dtype: str,
    skip: Sequence[str],
    keep: Sequence[str],
    side_files_from: str | None,
    schedule: str | None = None,
    selection: Selection = Selection(),  # noqa: B008  read-only
    rows: str | None = None,
) -> Recipe:
    """Return the recipe of a weighted average.

    With a schedule or a selection the models are checkpoints of a training run, and come in the
    order of their steps.

    Raises:
        RecipeError: too few models, a path that is no Unicode, or weights, a schedule or a dtype
            that make no sense.
    """
    for text in (*models, *skip, *keep, side_files_from or ""):
        if not is_unicode(text):
            raise RecipeError(
                f"{printable(text)} is not Unicode and cannot be recorded",
                "Rename it, or give a symbolic link to it that has a plain name.",
            )
    models = expand(models) if schedule or selection else models
    if schedule is not None or selection:
        if weights is not None:
            raise RecipeError(
                "weights beside a schedule or a choice of checkpoints: which is whose is not clear",
                "Give --schedule explicit:1,2,3 for the chosen ones, oldest first.",
            )
        models = select(models, selection)
    if len(models) < 2:
        raise RecipeError(
            f"an average needs at least two models, not {len(models)}",
            "To copy a single checkpoint, use `cp -r` or `hf download`.",
        )
    if weights is not None and len(weights) != len(models):
        count = "1 weight" if len(weights) == 1 else f"{len(weights)} weights"
        raise RecipeError(
            f"{count} for {len(models)} models",
            "Give --weight once for each model, in the same order, or not at all.",
        )
    if schedule is not None:
        coefficients(schedule, len(models))
    exact_weights(weights or [1])
    settings: list[Settings] = [{} for _ in models]
    for own, weight in zip(settings, weights or (), strict=False):
        own["weight"] = weight
    return Recipe(
        models=tuple(
            ModelEntry(model=model, parameters=own)
            for model, own in zip(models, settings, strict=True)
        ),
        schedule=schedule,
        out_dtype=_dtype_name(dtype),
        skip=tuple(skip),
        keep=tuple(keep),
        rows=_rows(rows),
        side_files_from=side_files_from,
    )


def _rows(name: str | None) -> Literal["min", "max", "base"] | None:
    if name not in (None, "min", "max", "base"):
        raise RecipeError(f"{name!r} is no rule for rows", "Choose one of min, max, base.")
    return cast(Literal["min", "max", "base"] | None, name)


def _dtype_name(name: str) -> OutDtype:
    if name not in get_args(OutDtype):
        known = ", ".join(get_args(OutDtype))
        raise RecipeError(f"{name!r} is no output dtype", f"Choose one of {known}.")
    return cast(OutDtype, name)
