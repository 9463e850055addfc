"""The output's vocabulary, and the tokenizer files that go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streammerge.errors import UnsupportedError
from streammerge.formats.side_files import is_tokenizer_file
from streammerge.tokenizers.vocabulary import HasFiles, Vocabulary, read_json
from streammerge.views.wrapping import encode_json

Content = Callable[[], bytes]
Files = dict[str, tuple[int, Content]]
"""Size and content of side files, by path."""


def extend(vocabulary: Vocabulary, others: Iterable[tuple[Vocabulary, int]]) -> None:
    """Add the tokens of other models that have a row.

    Args:
        vocabulary: the base's; is changed.
        others: the models' vocabularies and the rows of their embeddings, in order.

    First come the tokens that the others' own models know, then those that are added to these; each
    in the order of the ids. All become added tokens: the base's way of cutting text stays.
    """
    plain: dict[str, None] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for other, limit in others:
        within = (item for item in other.rows.items() if item[1] < limit)
        for token, _ in sorted(within, key=lambda item: item[1]):
            if token in other.added:
                settings.setdefault(token, other.added[token])
            elif token not in vocabulary.rows:
                plain[token] = None
    for token in plain:
        if token not in settings:
            vocabulary.add(token)
    for token, entry in settings.items():
        vocabulary.add(token, entry)


def copied_files(source: HasFiles) -> Files:
    """Return a model's tokenizer files as they are."""
    return {
        path: (identity.size, lambda path=path: source.read_side_file(path))  # type: ignore[misc]
        for path, identity in source.side_files().items()
        if is_tokenizer_file(path)
    }


def extended_files(source: HasFiles, vocabulary: Vocabulary) -> Files:
    """Return a model's tokenizer files with the added tokens of a vocabulary written into them.

    Raises:
        UnsupportedError: the model has no tokenizer.json to write them into.
    """
    files = copied_files(source)
    if "tokenizer.json" not in files:
        raise UnsupportedError(
            f"{source.label} has no tokenizer.json that tokens can be added to",
            "Load its tokenizer with transformers and `save_pretrained(folder)`: that writes one.",
        )
    entries = sorted(vocabulary.added.values(), key=lambda entry: int(entry["id"]))
    tokenizer = read_json(source, "tokenizer.json")
    present = {entry["content"]: entry for entry in tokenizer.get("added_tokens") or []}
    tokenizer["added_tokens"] = [present.get(entry["content"], entry) for entry in entries]
    config = read_json(source, "tokenizer_config.json")
    config["added_tokens_decoder"] = {
        str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
        for entry in entries
    }
    for path, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        raw = encode_json(value)
        files[path] = (len(raw), lambda raw=raw: raw)  # type: ignore[misc]
    return files
