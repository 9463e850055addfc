"""Models wrapped so that all have the output's vocabulary: rows matched by token, not by number.

The same row may stand for different tokens in two models, and averaging those gives neither. Each
view shows its embedding and output head in the order of the output, and the output's tokenizer
files and config beside them; so plan, merge and documents know nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streammerge.errors import RecipeError, printable
from streammerge.formats import Checkpoint
from streammerge.formats.side_files import is_tokenizer_file
from streammerge.tokenizers.numbering import renumbered, same_numbers
from streammerge.tokenizers.rows import (
    Rule,
    Table,
    align,
    vocabulary_sizes,
    vocabulary_tensors,
)
from streammerge.tokenizers.union import Files, copied_files, extend, extended_files
from streammerge.tokenizers.vocabulary import (
    HasFiles,
    Vocabulary,
    read_json,
    read_vocabulary,
    tokenizer_digest,
)
from streammerge.tokenizers.wish import TokenizerWish, TokenRow, TokenWish, ZeroRow
from streammerge.views.embeddings import Realigned
from streammerge.views.gather import ZERO, Alignment, Indices
from streammerge.views.wrapping import encode_json, with_vocabulary

_GENERATION = "generation_config.json"
_NO_LIMIT = 2**31 - 1


def apply_tokenizer(
    checkpoints: Sequence[Checkpoint],
    base: int | None,
    wish: TokenizerWish,
    others: Sequence[HasFiles] = (),
) -> list[Checkpoint]:
    """Return views of the models that all have the output's vocabulary.

    Args:
        checkpoints: all models of the merge, the base included.
        base: index of the base model; None where the recipe has none: the first then gives the
            tokenizer, and no model's rows go before another's.
        wish: see `tokenizer_wish`.
        others: models that are not merged, but that `wish.source` may name.

    Raises:
        StreammergeError: a tokenizer cannot be read, or the wish does not fit the models.
    """
    aligner = _Aligner(checkpoints, base, wish, others)
    return [aligner.view(index) for index in range(len(checkpoints))]


class _Aligner:
    """Everything that the views of one merge share."""

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        base: int | None,
        wish: TokenizerWish,
        others: Sequence[HasFiles],
    ) -> None:
        self._checkpoints, self._wish = checkpoints, wish
        first = checkpoints[base or 0]
        self._source = self._find_source(first, others)
        self._digest = tokenizer_digest(self._source)
        digests = [tokenizer_digest(checkpoint) for checkpoint in checkpoints]
        # A model without a tokenizer is taken to have the first one's.
        self._digests = [digest or digests[base or 0] for digest in digests]
        self._readable: list[HasFiles] = [
            c if digest else first for c, digest in zip(checkpoints, digests, strict=True)
        ]
        self._names, strange = vocabulary_tensors(checkpoints, wish.embeddings)
        self._limits = [self._rows_of(checkpoint) for checkpoint in checkpoints]
        vocabulary = read_vocabulary(self._source)
        self._source_ids = np.fromiter(vocabulary.rows.values(), np.int32)
        self._files = self._extend(vocabulary)
        self._size = -(-vocabulary.size // (wish.pad_to_multiple_of or 1))
        self._size *= wish.pad_to_multiple_of or 1
        held = self._held(vocabulary)
        used = np.zeros(self._size, np.bool_)
        used[list(vocabulary.rows.values())] = True
        self._table = Table(held, used, self._rules(vocabulary, held), base)
        self._alignments = [self._align(index) for index in range(len(checkpoints))]
        self._refuse(strange)
        self._notes = self._describe(vocabulary)

    def _find_source(self, first: Checkpoint, others: Sequence[HasFiles]) -> HasFiles:
        name = self._wish.source
        if name in ("base", "union"):
            return first
        known = [*self._checkpoints, *others]
        found = next((model for model in known if model.label == name), None)
        if found is None:
            raise RecipeError(
                f"tokenizer.source {printable(name)!r} is none of the models",
                f"Give base, union, or one of: {', '.join(m.label for m in known)}.",
            )
        return found

    def _rows_of(self, checkpoint: Checkpoint) -> int:
        tensors = checkpoint.tensors
        return max((tensors[n].shape[0] for n in self._names if n in tensors), default=_NO_LIMIT)

    def _extend(self, vocabulary: Vocabulary) -> Files:
        """Add what the wish adds to the source's vocabulary; return the tokenizer's files."""
        before = len(vocabulary.rows), len(vocabulary.added)
        if self._wish.source == "union":
            others = {
                digest: (model, limit)
                for digest, model, limit in zip(
                    self._digests, self._readable, self._limits, strict=True
                )
                if digest != self._digest
            }
            # One at a time: a large vocabulary takes 100 MB.
            extend(vocabulary, ((read_vocabulary(m), rows) for m, rows in others.values()))
        for token in self._wish.tokens:
            if token not in vocabulary.rows:
                vocabulary.add(token)
        if before == (len(vocabulary.rows), len(vocabulary.added)):
            return copied_files(self._source)
        return extended_files(self._source, vocabulary)

    def _held(self, vocabulary: Vocabulary) -> list[Indices]:
        """Return for each model the rows of the output's rows."""
        ids = np.fromiter(vocabulary.rows.values(), np.int32)
        found: dict[str, Indices] = {}
        for digest, model in zip(self._digests, self._readable, strict=True):
            if digest in found:
                continue
            rows = np.full(self._size, -1, np.int32)
            if digest == self._digest:
                rows[self._source_ids] = self._source_ids
            else:
                theirs = read_vocabulary(model).rows
                rows[ids] = np.fromiter((theirs.get(t, -1) for t in vocabulary.rows), np.int32)
            found[digest] = rows
        return [
            np.where(found[digest] < limit, found[digest], np.int32(-1))
            for digest, limit in zip(self._digests, self._limits, strict=True)
        ]

    def _rules(self, vocabulary: Vocabulary, held: Sequence[Indices]) -> dict[int, Rule]:
        return {
            vocabulary.rows[token]: self._rule(token, vocabulary.rows[token], rule, held)
            for token, rule in self._wish.tokens.items()
            if rule.source is not None
        }

    def _rule(self, token: str, row: int, wish: TokenWish, held: Sequence[Indices]) -> Rule:
        where, source = f"tokenizer.tokens.{printable(token)!r}", wish.source
        if isinstance(source, ZeroRow):
            return Rule(ZERO, 0, wish.force)
        name = source.model if isinstance(source, TokenRow) else str(source)
        labels = [checkpoint.label for checkpoint in self._checkpoints]
        if name not in labels:
            raise RecipeError(
                f"{where}: {printable(name)!r} is none of the models",
                f"Give one of: {', '.join(labels)}.",
            )
        model = labels.index(name)
        if isinstance(source, TokenRow) and source.token_id is not None:
            found = source.token_id
        elif isinstance(source, TokenRow):
            found = read_vocabulary(self._readable[model]).rows.get(str(source.token), -1)
        else:
            found = int(held[model][row])
        if not 0 <= found < self._limits[model]:
            raise RecipeError(f"{where}: {name} has no such token", "Name a token that it has.")
        return Rule(model, found, wish.force)

    def _align(self, index: int) -> dict[str, Alignment]:
        found = {
            name: align(name, index, self._checkpoints, self._table)
            for name in self._names
            if name in self._checkpoints[index].tensors
        }
        return {name: alignment for name, alignment in found.items() if alignment is not None}

    def _refuse(self, strange: Sequence[str]) -> None:
        """Refuse to leave a tensor in its order that may have to follow the tokens."""
        moved = any(not same_numbers(rows) for rows in self._table.held) or any(self._alignments)
        if strange and moved:
            raise RecipeError(
                f"{printable(strange[0])} has the size of the vocabulary, and a name that is not "
                f"known to be an embedding's or an output head's ({len(strange)} such tensors)",
                "List the tensors with a row for each token: `tokenizer: {embeddings: [globs]}`.",
            )

    def _describe(self, vocabulary: Vocabulary) -> list[str]:
        table, notes = self._table, []
        notes.append(
            f"the vocabulary ({self._wish.source}) has {len(vocabulary.rows):,} tokens in "
            f"{self._size:,} rows"
        )
        for index, checkpoint in enumerate(self._checkpoints):
            if self._readable[index] is not checkpoint:
                label = self._readable[index].label
                notes.append(f"{checkpoint.label} has no tokenizer: taken to have that of {label}")
            lacking = int((table.used & (table.held[index] < 0)).sum())
            if lacking:
                notes.append(f"{checkpoint.label} lacks {lacking:,} tokens of the vocabulary")
        nobody = table.used & ~np.any([rows >= 0 for rows in table.held], axis=0)
        nobody[list(table.rules)] = False
        if nobody.any():
            tokens = [token for token, row in vocabulary.rows.items() if nobody[row]]
            shown = ", ".join(printable(token, 40) for token in tokens[:3])
            notes.append(f"{len(tokens):,} tokens that no model has get rows of zeros: {shown}")
        return notes

    def view(self, index: int) -> Realigned:
        """Return the view of one model."""
        checkpoint, alignments = self._checkpoints[index], self._alignments[index]
        view = Realigned(checkpoint, alignments)
        config: Mapping[str, Any] = view.config
        if alignments:
            config = with_vocabulary(config, vocabulary_sizes(checkpoint), self._size)
        held = self._table.held[index]
        if not same_numbers(held):
            config = renumbered(config, held, read_json(self._source, "config.json"))
            if _GENERATION in view.side_files():
                ours, theirs = (read_json(model, _GENERATION) for model in (view, self._source))
                raw = encode_json(renumbered(ours, held, theirs))
                view.put_file(_GENERATION, len(raw), lambda: raw)
        view.put_config(config)
        for path in [path for path in view.side_files() if is_tokenizer_file(path)]:
            view.hide_file(path)
        for path, (size, content) in self._files.items():
            view.put_file(path, size, content)
        if index == 0:
            view.notes += self._notes
        return view
