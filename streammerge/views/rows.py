"""Vocabularies that were padded to different sizes, brought to one: `--rows min|max|base`.

Padding adds rows that no token uses to the embedding and the output head, 128,256 → 128,320 say,
so that a kernel or a number of devices divides them. Tokens keep their rows, and so do these views;
for vocabularies with other tokens there is the recipe's `tokenizer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np

from streammerge.errors import printable
from streammerge.formats import Checkpoint, as_read
from streammerge.tensors import TensorInfo
from streammerge.views.embeddings import Realigned
from streammerge.views.gather import Alignment
from streammerge.views.vocabulary import is_input_embedding, is_vocabulary
from streammerge.views.wrapping import with_vocabulary

Rule = Literal["min", "max", "base"]
Rows = tuple[int, ...]
"""Numbers of rows, one for each model; 0 for one that lacks the tensor."""


class Holder(Protocol):
    """The part of a checkpoint that matters for finding such tensors."""

    tensors: dict[str, TensorInfo]

    @property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json."""


def padded_tensors(models: Sequence[Holder]) -> dict[str, Rows]:
    """Return the tensors with a row for each token of which the models have different numbers.

    An embedding is known by its name, or by its rows, if they are the `vocab_size` of each config.
    Other tensors go with it whose rows are as many in each model: a tensor that merely differs in
    its first dimension, such as the keys of another number of heads, is none.

    Returns:
        their rows by name, and those that they go with: all of one vocabulary are alike.
    """
    names = dict.fromkeys(name for model in models for name in model.tensors)
    rows = {name: found for name in names if (found := _rows(name, models))}
    sizes = [_sizes(model.config) for model in models]
    vocabularies = {
        found
        for name, found in rows.items()
        if len(set(found)) > 1
        and 0 not in found
        and (is_input_embedding(name) or all(n in s for n, s in zip(found, sizes, strict=True)))
    }
    return {
        name: vocabulary
        for name, found in rows.items()
        for vocabulary in vocabularies
        if found == vocabulary
        or (
            is_vocabulary(name)
            and all(n in (0, size) for n, size in zip(found, vocabulary, strict=True))
        )
    }


def _rows(name: str, models: Sequence[Holder]) -> Rows:
    """Return the rows of a tensor in each model; nothing where they differ in more than that."""
    infos = [model.tensors.get(name) for model in models]
    shapes = {(info.shape[1:], info.kind) for info in infos if info is not None}
    if len(shapes) > 1 or any(info is not None and not info.shape for info in infos):
        return ()
    return tuple(info.shape[0] if info is not None else 0 for info in infos)


def _sizes(config: Mapping[str, Any]) -> set[int]:
    """Return each `vocab_size` in a config, those of nested configs included."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    return {part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)}


def with_rows(checkpoints: Sequence[Checkpoint], rule: Rule, base: int = 0) -> list[Checkpoint]:
    """Return views in which all models have the same number of rows for tokens.

    Args:
        checkpoints: the models.
        rule: "min": the rows that all have; "max": all rows; "base": as many as the base has. A
            model that lacks a row has it from the base, or else from the first model that has it.
        base: index of the base model, or of the first.
    """
    padded = padded_tensors(checkpoints)
    order = [base, *(i for i in range(len(checkpoints)) if i != base)]
    targets = {
        rows: rows[base] if rule == "base" else max(rows) if rule == "max" else min(rows)
        for rows in padded.values()
    }
    return [
        _Resized(index, checkpoints, padded, targets, order, rule) if padded else checkpoint
        for index, checkpoint in enumerate(checkpoints)
    ]


class _Resized(Realigned):
    """A checkpoint with more or fewer rows for tokens; see `formats.Checkpoint`."""

    def __init__(
        self,
        index: int,
        checkpoints: Sequence[Checkpoint],
        padded: Mapping[str, Rows],
        targets: Mapping[Rows, int],
        order: Sequence[int],
        rule: Rule,
    ) -> None:
        base = checkpoints[index]
        longer: dict[str, Alignment] = {}
        shorter: dict[str, int] = {}
        for name, vocabulary in padded.items():
            target = targets[vocabulary]
            if name in base.tensors and target > vocabulary[index]:
                alignment = _extend(name, index, checkpoints, target, order)
                if alignment is not None:
                    longer[name] = alignment
            elif name in base.tensors and target < vocabulary[index]:
                shorter[name] = target
        super().__init__(base, longer)
        for name, target in shorter.items():
            info = self.tensors[name]  # its first rows lie where they lay
            self.tensors[name] = replace(info, shape=(target, *info.shape[1:]))
        for vocabulary, target in targets.items():
            self.put_config(with_vocabulary(self.config, {vocabulary[index]}, target))
        self._tell(padded, [*longer, *shorter], targets, index, rule)

    def _tell(
        self,
        padded: Mapping[str, Rows],
        changed: Sequence[str],
        targets: Mapping[Rows, int],
        index: int,
        rule: Rule,
    ) -> None:
        for vocabulary, target in targets.items():
            names = [printable(name) for name in changed if padded[name] == vocabulary]
            if names:
                done = "filled up from" if target > vocabulary[index] else "cut from"
                self.notes.append(
                    f"{', '.join(names)} of {self.label}: {done} {vocabulary[index]:,} rows to "
                    f"{target:,} (--rows {rule})"
                )


def _extend(
    name: str, index: int, checkpoints: Sequence[Checkpoint], target: int, order: Sequence[int]
) -> Alignment | None:
    """Return where the rows of a longer tensor come from; None where nobody has some of them."""
    infos = {i: as_read(c, name) for i, c in enumerate(checkpoints) if name in c.tensors}
    models, known = np.full(target, index, np.int32), infos[index].shape[0]
    for donor in order:
        if donor in infos and infos[donor].shape[0] > known:
            models[known : infos[donor].shape[0]] = donor
            known = min(target, infos[donor].shape[0])
    if known < target:
        return None
    dtypes = {infos[int(model)].dtype for model in np.unique(models)}
    own = infos[index]
    exact = own.dtype if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32"
    info = TensorInfo(name, exact, (target, *own.shape[1:]))
    return Alignment(info, models, np.arange(target, dtype=np.int32), (), checkpoints)
