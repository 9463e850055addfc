"""A recipe's inputs, opened: each checkpoint once; slices and recipes among them on top."""

from __future__ import annotations

from collections.abc import Callable

from streammerge.checkpoint import Checkpoint
from streammerge.planning import make_plan
from streammerge.recipe import Recipe
from streammerge.slices import stack_up
from streammerge.tokenizers import apply_chat_template, apply_tokenizer
from streammerge.views.rows import with_rows

Open = Callable[[str], Checkpoint]
_NO_LIMIT = 2**63


def open_inputs(recipe: Recipe, open_checkpoint: Open) -> list[Checkpoint]:
    """Return the inputs of a recipe in the order of `Recipe.inputs`.

    Args:
        recipe: what is asked for.
        open_checkpoint: opens a reference.

    Raises:
        CheckpointError: a reference that leads to no checkpoint.
        RecipeError: layers that a source does not have, or names that do not tell layers.
        CoverageError: tensors that no module holds.
    """
    opened: dict[str, Checkpoint] = {}
    for reference in recipe.opened:
        inner = recipe.recipes.get(reference)
        opened[reference] = (
            open_checkpoint(reference)
            if inner is None
            else _open_recipe(reference, inner, open_checkpoint)
        )
    opened = _with_tokenizer(recipe, opened, open_checkpoint)
    if recipe.sections:
        inputs: list[Checkpoint] = list(stack_up(recipe, opened))
    else:
        inputs = [opened[reference] for reference in recipe.inputs]
    return inputs if recipe.rows is None else with_rows(inputs, recipe.rows, recipe.base or 0)


def _with_tokenizer(
    recipe: Recipe, opened: dict[str, Checkpoint], open_checkpoint: Open
) -> dict[str, Checkpoint]:
    """Return views of the models that have the recipe's vocabulary and chat template."""
    names, models, wish = list(opened), list(opened.values()), recipe.tokenizer
    if wish is not None:
        base = names.index(recipe.base_model) if recipe.base_model in opened else None
        elsewhere = wish.source not in ("base", "union", *names)
        others = [open_checkpoint(wish.source)] if elsewhere else []
        models = apply_tokenizer(models, base, wish, others)
    return dict(zip(names, apply_chat_template(models, recipe.chat_template), strict=True))


def _open_recipe(label: str, recipe: Recipe, open_checkpoint: Open) -> Checkpoint:
    """Return the result of a recipe as a checkpoint that is merged as it is read."""
    from streammerge.chains import MergedCheckpoint  # loads torch, which few plans need

    checkpoints = open_inputs(recipe, open_checkpoint)
    return MergedCheckpoint(label, make_plan(recipe, checkpoints, _NO_LIMIT), checkpoints)
