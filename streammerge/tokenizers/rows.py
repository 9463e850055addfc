"""For each tensor with a row for each token: which row of which model becomes which of the output.

The rules are mergekit's. A model that has a token keeps its row. A model that lacks it gets, in
this order: what the recipe says of the token; the row of the only model that has it; the base's
row, if that has it; the mean of the rows of all that have it; zero, if none has. Rows that no token
uses (padding) are the mean of the model's other rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from streammerge.errors import CoverageError, RecipeError, printable
from streammerge.formats import Checkpoint, as_read
from streammerge.tensors import TensorInfo
from streammerge.views.gather import FILLER, MEAN, ZERO, Alignment, Indices
from streammerge.views.vocabulary import is_input_embedding, is_vocabulary


@dataclass(frozen=True)
class Rule:
    """Where the row of one token comes from, resolved.

    Attributes:
        model: index of a model, or ZERO.
        row: its row there.
        force: it holds for all models.
    """

    model: int
    row: int
    force: bool


@dataclass(frozen=True)
class Table:
    """Tokens of the output and their rows in the models.

    Attributes:
        held: for each model, the row of each row of the output; -1 where it lacks the token, or
            where no token uses the row.
        used: which rows of the output are a token's.
        rules: by row of the output.
        base: index of the base model; None where there is none.
    """

    held: Sequence[Indices]
    used: np.ndarray[tuple[int], np.dtype[np.bool_]]
    rules: Mapping[int, Rule]
    base: int | None


def vocabulary_sizes(checkpoint: Checkpoint) -> set[int]:
    """Return the numbers of rows that a model's vocabulary tensors may have."""
    said = checkpoint.config.get("vocab_size")
    rows = {
        tensor.shape[0]
        for tensor in checkpoint.tensors.values()
        if is_input_embedding(tensor.name) and len(tensor.shape) == 2
    }
    return rows | ({said} if isinstance(said, int) else set())


def vocabulary_tensors(
    checkpoints: Sequence[Checkpoint], globs: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the names of the tensors with a row for each token.

    Args:
        checkpoints: the models.
        globs: of names that the recipe gives; by their names and shapes where empty.

    Returns:
        the names, and those of tensors that have the size of the vocabulary and another name.

    Raises:
        RecipeError: a glob matches nothing.
    """
    names = list(dict.fromkeys(name for c in checkpoints for name in c.tensors))
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise RecipeError(
                f"tokenizer.embeddings: {glob!r} matches no tensor",
                "List the names with `streammerge inspect MODEL --verbose`.",
            )
    if globs:
        return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)], []
    sizes = [vocabulary_sizes(checkpoint) for checkpoint in checkpoints]
    shaped = [
        name
        for name in names
        if all(
            not own.isdisjoint(c.tensors[name].shape[:1] + c.tensors[name].shape[-1:])
            for c, own in zip(checkpoints, sizes, strict=True)
            if name in c.tensors
        )
    ]
    return [n for n in shaped if is_vocabulary(n)], [n for n in shaped if not is_vocabulary(n)]


def align(
    name: str, model: int, checkpoints: Sequence[Checkpoint], table: Table
) -> Alignment | None:
    """Return where the rows of a model's tensor come from; None where nothing changes.

    Raises:
        CoverageError: the models' rows have different lengths.
    """
    infos = [as_read(c, name) if name in c.tensors else None for c in checkpoints]
    own = infos[model]
    assert own is not None
    held = [_within(rows, info) for rows, info in zip(table.held, infos, strict=True)]
    models, rows = _defaults(held, table)
    has = held[model] >= 0
    for row, rule in table.rules.items():
        source = infos[rule.model] if rule.model >= 0 else None
        if rule.model >= 0 and (source is None or rule.row >= source.shape[0]):
            raise RecipeError(
                f"tokenizer.tokens: {checkpoints[rule.model].label} has no such row in "
                f"{printable(name)}",
                "Name a model that stores this tensor; where the head is tied, it stores none.",
            )
        models[row], rows[row] = rule.model, rule.row
        has[row] &= not rule.force
    models[has], rows[has] = model, held[model][has]
    models[~table.used], rows[~table.used] = FILLER, 0
    size = len(models)
    if own.shape[0] == size and (models == model).all() and (rows == np.arange(size)).all():
        return None
    used = {int(m) for m in np.unique(models)} | _meant(models, held)
    _refuse_other_lengths(name, sorted(m for m in used if m >= 0), checkpoints)
    info = TensorInfo(name, _dtype(own, used, infos), (size, *own.shape[1:]))
    holders = held if MEAN in used else ()
    return Alignment(info, models, rows, holders, checkpoints)


def _within(rows: Indices, info: TensorInfo | None) -> Indices:
    """Return a model's rows, as far as its tensor has them."""
    limit = 0 if info is None else info.shape[0]
    return np.where(rows < limit, rows, np.int32(-1)).astype(np.int32)


def _defaults(held: Sequence[Indices], table: Table) -> tuple[Indices, Indices]:
    """Return model and row of what a model gets that lacks a token."""
    present = np.stack([rows >= 0 for rows in held])
    count = present.sum(axis=0)
    models = np.where(count == 0, ZERO, MEAN).astype(np.int32)
    rows = np.zeros(len(models), np.int32)
    for model, own in enumerate(held):
        alone = present[model] & ((count == 1) | (model == table.base))
        models[alone], rows[alone] = model, own[alone]
    return models, rows


def _meant(models: Indices, held: Sequence[Indices]) -> set[int]:
    """Return the models whose rows go into means."""
    means = models == MEAN
    return {model for model, rows in enumerate(held) if (rows[means] >= 0).any()}


def _dtype(own: TensorInfo, used: set[int], infos: Sequence[TensorInfo | None]) -> str:
    """Return what holds all rows exactly: the model's own dtype, or a wider one for means."""
    dtypes = {info.dtype for m, info in enumerate(infos) if info and m in used} | {own.dtype}
    if len(dtypes) == 1 and not used & {MEAN, FILLER}:
        return own.dtype
    return "F64" if "F64" in dtypes else "F32"


def _refuse_other_lengths(
    name: str, models: Sequence[int], checkpoints: Sequence[Checkpoint]
) -> None:
    shapes = {checkpoints[m].label: checkpoints[m].tensors[name].shape[1:] for m in models}
    if len(set(shapes.values())) > 1:
        shown = "; ".join(f"{list(shape)} in {label}" for label, shape in shapes.items())
        raise CoverageError(
            f"the rows of {printable(name)} differ in shape: {shown}",
            "Merge checkpoints of one architecture.",
        )
