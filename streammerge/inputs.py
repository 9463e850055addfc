"""A recipe's inputs, opened: each checkpoint once; slices and recipes among them on top."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streammerge.checkpoint import Checkpoint
from streammerge.planning import make_plan
from streammerge.recipe import Recipe
from streammerge.recipe.entries import Tokenizer
from streammerge.slices import stack_up
from streammerge.tokenizers import apply_chat_template, apply_tokenizer, tokenizer_wish
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
    if recipe.sections:
        inputs: list[Checkpoint] = list(stack_up(recipe, opened))
    else:
        inputs = [opened[reference] for reference in recipe.inputs]
    if recipe.rows is not None:
        inputs = with_rows(inputs, recipe.rows, recipe.base or 0)
    if recipe.tokenizer is not None:
        wish = tokenizer_wish(None, _written(recipe.tokenizer))
        assert wish is not None
        inputs = apply_tokenizer(inputs, recipe.base, wish, list(opened.values()))
    return apply_chat_template(inputs, recipe.chat_template)


def _written(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a recipe's tokenizer as it is written in YAML."""
    tokens: dict[str, Any] = {}
    for token, source in tokenizer.tokens.items():
        chosen: Any = source.model
        if source.kind in ("zero", "model_token"):
            chosen = source.model_dump(exclude={"force"}, exclude_none=True)
        tokens[token] = {"source": chosen, "force": source.force}
    padding = tokenizer.pad_to_multiple_of
    return {"source": tokenizer.source, "tokens": tokens, "pad_to_multiple_of": padding}


def _open_recipe(label: str, recipe: Recipe, open_checkpoint: Open) -> Checkpoint:
    """Return the result of a recipe as a checkpoint that is merged as it is read."""
    from streammerge.chains import MergedCheckpoint  # loads torch, which few plans need

    checkpoints = open_inputs(recipe, open_checkpoint)
    return MergedCheckpoint(label, make_plan(recipe, checkpoints, _NO_LIMIT), checkpoints)
