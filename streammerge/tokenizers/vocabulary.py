"""Which token has which row: a model's vocabulary, read from its tokenizer's files.

The files are read as JSON and text; no tokenizer is built and no code of a model is run. Counted
are the tokens that transformers would know after loading: those of `tokenizer.json` (in older ones
`vocab.json` or `vocab.txt`), then those that `tokenizer_config.json` adds to them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from streammerge.errors import CheckpointError, HeaderError, UnsupportedError, printable
from streammerge.formats.limits import MOST, refuse_length
from streammerge.formats.safetensors import load_json_object
from streammerge.formats.side_files import is_tokenizer_file
from streammerge.storage import FileIdentity

_MOST_TOKENS = 2**24
_OPAQUE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json")
_SPECIAL = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens"),
)
AddedToken = dict[str, Any]
"""An entry of `added_tokens` in tokenizer.json: id, content and how it is matched in text."""


class HasFiles(Protocol):
    """The part of a checkpoint that matters here."""

    label: str

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Path and identity of each side file."""

    def read_side_file(self, path: str) -> bytes:
        """The content of a side file."""


@dataclass(slots=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        rows: id by token.
        added: those that are matched in the text before it is cut into the others, by token.
        own: how many tokens the model of the tokenizer has itself.
    """

    rows: dict[str, int] = field(default_factory=dict)
    added: dict[str, AddedToken] = field(default_factory=dict)
    own: int = 0

    @property
    def size(self) -> int:
        """Rows that the tokens span."""
        return max(self.rows.values(), default=-1) + 1

    def next_id(self) -> int:
        """Return the id that the next token to be added gets, as the tokenizers library counts."""
        last = max((entry["id"] for entry in self.added.values()), default=-1)
        return max(self.own, last + 1)

    def add(self, content: str, settings: Mapping[str, Any] | None = None) -> None:
        """Add a token, or settings to one that is there; the first settings of a token stay."""
        if content in self.added:
            return
        number = self.rows.get(content, self.next_id())
        self.rows[content] = number
        self.added[content] = added_token(number, content, settings or {})


def added_token(number: int, content: str, settings: Mapping[str, Any]) -> AddedToken:
    """Return the entry of an added token; what is not set is as the library's `AddedToken`."""
    special = settings.get("special") is True
    flags = {
        key: settings.get(key) is True if key in settings else default
        for key, default in (
            ("single_word", False),
            ("lstrip", False),
            ("rstrip", False),
            ("normalized", not special),
        )
    }
    return {"id": number, "content": content, **flags, "special": special}


def tokenizer_digest(model: HasFiles) -> str:
    """Return a sha256 over all files of a tokenizer; "" where there is none."""
    digest, found = hashlib.sha256(), False
    for path in sorted(model.side_files()):
        if is_tokenizer_file(path) and not path.startswith(("chat_template", "additional_chat")):
            found = True
            content = model.read_side_file(path)
            digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest() if found else ""


def read_vocabulary(model: HasFiles) -> Vocabulary:
    """Return the vocabulary of a model.

    Raises:
        CheckpointError: a file breaks its format.
        UnsupportedError: the tokenizer is in a form that only its own library reads.
    """
    files = model.side_files()
    if "tokenizer.json" in files:
        vocabulary = _from_tokenizer_json(model)
    elif "vocab.json" in files or "vocab.txt" in files:
        vocabulary = _from_vocabulary_file(model)
    else:
        shown = next((f"only {name}" for name in _OPAQUE if name in files), "no tokenizer")
        raise UnsupportedError(
            f"{model.label} has {shown}, so its tokens are not known",
            "Load its tokenizer with transformers and `save_pretrained(folder)`: that writes "
            "tokenizer.json.",
        )
    config = read_json(model, "tokenizer_config.json")
    for content, settings in _configured(model, config):
        vocabulary.add(content, settings)
    return vocabulary


def read_json(model: HasFiles, path: str) -> dict[str, Any]:
    """Return the JSON object in a side file; empty where there is no such file."""
    files = model.side_files()
    if path not in files:
        return {}
    try:
        refuse_length("the file", files[path].size, MOST)
        return load_json_object(model.read_side_file(path), "the file")
    except HeaderError as error:
        raise CheckpointError(
            f"{model.label}/{path}: {error.message}", "Repair or download it again."
        ) from error


def _from_tokenizer_json(model: HasFiles) -> Vocabulary:
    content = read_json(model, "tokenizer.json")
    inner = content.get("model")
    own = inner.get("vocab") if isinstance(inner, dict) else None
    if isinstance(own, list):  # Unigram: pairs of token and score, in the order of the ids
        own = {pair[0]: i for i, pair in enumerate(own) if isinstance(pair, list) and pair}
    vocabulary = Vocabulary(_checked(model, "tokenizer.json", own))
    vocabulary.own = len(vocabulary.rows)
    for entry in content.get("added_tokens") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise _broken(model, "tokenizer.json", "an added token without content")
        text, number = entry["content"], entry.get("id")
        _checked(model, "tokenizer.json", {text: number})
        vocabulary.rows[text] = int(number or 0)
        vocabulary.added[text] = added_token(vocabulary.rows[text], text, entry)
    return vocabulary


def _from_vocabulary_file(model: HasFiles) -> Vocabulary:
    if "vocab.json" in model.side_files():
        own = _checked(model, "vocab.json", read_json(model, "vocab.json"))
    else:
        text = model.read_side_file("vocab.txt").decode(errors="replace")
        lines = re.split(r"\r\n|\r|\n", text)  # no other character ends a line here
        own = {
            token: number for number, token in enumerate(lines[:-1] if lines[-1] == "" else lines)
        }
    vocabulary = Vocabulary(own, own=len(own))
    extra = _checked(model, "added_tokens.json", read_json(model, "added_tokens.json"))
    for content, number in sorted(extra.items(), key=lambda item: item[1]):
        vocabulary.rows[content] = number
        vocabulary.added[content] = added_token(number, content, {})
    return vocabulary


def _checked(model: HasFiles, path: str, tokens: Any) -> dict[str, int]:
    """Return tokens and ids that are what they should be."""
    if not isinstance(tokens, dict) or not all(
        isinstance(token, str) and type(number) is int and 0 <= number < _MOST_TOKENS
        for token, number in tokens.items()
    ):
        raise _broken(model, path, "a vocabulary that is not tokens with ids")
    return tokens


def _broken(model: HasFiles, path: str, what: str) -> CheckpointError:
    return CheckpointError(f"{model.label}/{path} has {what}", "Repair or download it again.")


def _configured(
    model: HasFiles, config: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what tokenizer_config.json adds: its decoder's tokens, then the special ones."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or not all(key.isdecimal() for key in decoder):
        raise _broken(model, "tokenizer_config.json", "an added_tokens_decoder without ids")
    ordered = [decoder[key] for key in sorted(decoder, key=int)]
    special: list[Any] = []
    for value in (config.get(key) for key in _SPECIAL):
        if isinstance(value, dict) and "content" not in value:
            value = list(value.values())
        special += value if isinstance(value, list) else [value]
    for item, settings in [*((i, {}) for i in ordered), *((i, {"special": True}) for i in special)]:
        content = item.get("content") if isinstance(item, dict) else item
        if isinstance(content, str):
            yield content, item if isinstance(item, dict) else settings
        elif content is not None:
            name = printable(repr(content), 40)
            raise _broken(model, "tokenizer_config.json", f"the token {name}")
