"""What a call from Python asks for, as the recipe that a file would ask for it with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from streammerge.errors import RecipeError
from streammerge.extensions import find_method
from streammerge.recipe import ModelEntry, Recipe
from streammerge.recipe.recipe import OutDtype


def make_recipe(
    names: Sequence[str],
    base: str | None,
    method: str,
    parameters: Mapping[str, Any],
    dtype: object = "auto",
    seed: int = 0,
) -> Recipe:
    """Return the recipe of a merge of named models.

    Args:
        names: of the models, without the base model.
        base: name of the base model, if there is one.
        method: name or alias.
        parameters: of the method; a mapping from names of models gives each its own value, a list
            is a gradient over the layers.
        dtype: of merged tensors: "auto", a name, or a torch dtype.
        seed: of methods that draw random numbers.

    Raises:
        RecipeError: a method that is unknown or lacks its base model, or values that make no sense.
    """
    if find_method(method).base == "required" and base is None:
        raise RecipeError(
            f"{method} works on differences to a base model, and none is given",
            "Name it '_pretrained_' among the models, or give it as base=.",
        )
    common: dict[str, Any] = {}
    each: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in parameters.items():
        if not isinstance(value, Mapping):
            common[key] = _plain(key, value)
            continue
        if value.keys() != each.keys():
            raise RecipeError(
                f"{key} is given for {', '.join(map(repr, value))}",
                f"Give one value for all models, or one for each: {', '.join(each)}.",
            )
        for name, own in value.items():
            each[name][key] = _plain(key, own)
    return Recipe.build(
        method=method,
        models=tuple(ModelEntry.build(model=name, parameters=own) for name, own in each.items()),
        base_model=base,
        parameters=common,
        out_dtype=_dtype_name(dtype),
        seed=seed,
    )


def _plain(key: str, value: Any) -> Any:
    """Return a value as a recipe has it; numbers and arrays of numpy and torch as Python's."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple) and value:
        return tuple(_plain(key, part) for part in value)
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise RecipeError(
        f"{key} is {value!r}",
        "Give a finite number, a text or a truth value; or a list of them, over the layers.",
    )


def _dtype_name(dtype: object) -> OutDtype:
    name: Any = str(dtype).removeprefix("torch.")
    if name not in get_args(OutDtype):
        known = ", ".join(get_args(OutDtype))
        raise RecipeError(f"{name!r} is no dtype of a merged model", f"Choose one of {known}.")
    chosen: OutDtype = name
    return chosen
