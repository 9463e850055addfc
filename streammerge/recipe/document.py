"""What stands in a recipe: nodes that know their line, and are texts, lists and mappings.

No tag is resolved and no object made. What a plain word means is decided where it is used, so that
a model may be called `on` and 1e-5 is a number (YAML 1.1 says otherwise of both). What aliases
repeat counts towards the bounds of `syntax.py`, and a key may stand only once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping

from yaml import MappingNode, ScalarNode, SequenceNode
from yaml import Node as YamlNode

from streammerge.errors import RecipeError, printable
from streammerge.recipe.settings import Value
from streammerge.recipe.syntax import MAX_DEPTH, MAX_NODES, read_syntax, too_much

_PLAIN_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_WORDS = {
    form: word in _TRUE
    for word in (*_TRUE, *_FALSE)
    for form in (word, word.capitalize(), word.upper())
}
_ENDLESS = (".inf", "+.inf", "-.inf", ".nan")
# Numbers in YAML 1.1 and words or other numbers in YAML 1.2: 017, 0x1F, 1_000, 10:30.
_DOUBTFUL = re.compile(r"[-+]?(0[0-9]+|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*(:[0-9]+)+|[0-9]+_[0-9_]+)")

Path = tuple[str | int, ...]


class Document:
    """A file, and what has been seen of it.

    Attributes:
        label: its path as written.
        lines: where each part stands, by keys and list numbers from the top.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: dict[Path, int] = {}
        self._seen = 0

    def see(self, path: Path, line: int) -> None:
        """Keep the line of a part, and count it."""
        self.lines.setdefault(path, line)
        self._seen += 1
        if self._seen > MAX_NODES or len(path) > MAX_DEPTH:
            raise too_much(self.label)


class Node:
    """A part of a document; reading it as something that it is not raises a RecipeError.

    Attributes:
        path: keys and list numbers from the top.
        line: where it stands, from 1; for the value of a key the line of the key.
    """

    def __init__(
        self, document: Document, path: Path, raw: YamlNode, key: YamlNode | None = None
    ) -> None:
        self._document, self.path, self._raw = document, path, raw
        self.line: int = (key or raw).start_mark.line + 1
        document.see(path, self.line)
        if raw.tag not in _PLAIN_TAGS:
            raise self.error(
                f"the tag {printable(raw.tag, 80)} is not allowed", "Write plain values."
            )

    @property
    def is_mapping(self) -> bool:
        """Whether it has keys."""
        return isinstance(self._raw, MappingNode)

    @property
    def is_list(self) -> bool:
        """Whether it is a list."""
        return isinstance(self._raw, SequenceNode)

    @property
    def is_null(self) -> bool:
        """Whether nothing is written here."""
        plain = isinstance(self._raw, ScalarNode) and not self._raw.style
        return plain and self._raw.value in ("", "~", "null", "Null", "NULL")

    def lines(self) -> dict[Path, int]:
        """Return the lines of everything below, by where it stands from here."""
        depth = len(self.path)
        known = self._document.lines.items()
        return {path[depth:]: line for path, line in known if path[:depth] == self.path}

    def error(self, message: str, remedy: str = "") -> RecipeError:
        """Return an error that says where."""
        return RecipeError(f"{self._document.label}, line {self.line}: {message}", remedy)

    def text(self) -> str:
        """Return a scalar as it is written, be it a word, a number or in quotes."""
        if not isinstance(self._raw, ScalarNode) or self.is_null:
            raise self.error(f"{self._name()} is to be a text")
        return str(self._raw.value)

    def value(self) -> Value:
        """Return a scalar as the number, truth value or text that it means."""
        if not isinstance(self._raw, ScalarNode) or self.is_null:
            raise self.error(f"{self._name()} has no value", "Write a value, or leave the key out.")
        word = str(self._raw.value)
        if self._raw.style:
            return word
        if word in _WORDS:
            return _WORDS[word]
        if _INTEGER.fullmatch(word):
            return int(word)
        doubtful = _DOUBTFUL.fullmatch(word) or word.lower() in _ENDLESS
        if _FLOAT.fullmatch(word) and not doubtful:
            number = float(word)
            doubtful = not math.isfinite(number)
            if not doubtful:
                return number
        if doubtful:
            raise self.error(
                f"{self._name()} is {printable(word, 60)}, which is no number to rely on",
                "Write a finite decimal number, such as 0.5 or 1e-5; or a text in quotes.",
            )
        return word

    def integer(self) -> int:
        """Return a scalar as an integer."""
        value = self.value()
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{self._name()} is {value!r}, but an integer is asked for")
        return value

    def items(self) -> list[Node]:
        """Return the items of a list."""
        if not isinstance(self._raw, SequenceNode):
            raise self.error(f"{self._name()} is to be a list", "Begin each item with `- `.")
        return [
            Node(self._document, (*self.path, number), raw)
            for number, raw in enumerate(self._raw.value)
        ]

    def entries(self) -> dict[str, Node]:
        """Return keys and values of a mapping; `<<` adds those of others that it lacks."""
        if not isinstance(self._raw, MappingNode):
            raise self.error(f"{self._name()} is to be a mapping", "Write `key: value` below it.")
        found: dict[str, Node] = {}
        merged: list[Node] = []
        for raw_key, raw in self._raw.value:
            key = Node(self._document, (*self.path, "<key>"), raw_key).text()
            self._document.lines.pop((*self.path, "<key>"))
            node = Node(self._document, (*self.path, key), raw, raw_key)
            if key == "<<" and not raw_key.style:
                merged += node.items() if node.is_list else [node]
            elif key in found:
                raise node.error(f"{printable(key, 80)} stands here twice", "Remove one of them.")
            else:
                found[key] = node
        for other in merged:
            for key, node in other.entries().items():
                found.setdefault(key, Node(self._document, (*self.path, key), node._raw))
        return found

    def known(self, keys: Collection[str], hints: Mapping[str, str] | None = None) -> Entries:
        """Return the entries that are not null, after a check that there are no other keys.

        Args:
            keys: the allowed ones.
            hints: what to say of keys that people write here for some reason.
        """
        entries = self.entries()
        for key, node in entries.items():
            if key not in keys:
                raise node.unknown(key, keys, (hints or {}).get(key, ""))
        return {key: node for key, node in entries.items() if not node.is_null}

    def unknown(self, key: str, keys: Collection[str], hint: str = "") -> RecipeError:
        """Return the error for a key that has no meaning here."""
        near = difflib.get_close_matches(key, keys, n=1)
        suggestion = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(keys)}."
        return self.error(f"unknown key {printable(key, 80)!r}", hint or suggestion)

    def _name(self) -> str:
        words = [str(part) for part in self.path if isinstance(part, str)]
        return printable(words[-1], 80) if words else "the recipe"


Entries = dict[str, Node]


def read_document(path: str) -> tuple[Node, str]:
    """Return the root of a YAML file, and its text.

    Raises:
        RecipeError: it is not there, not YAML, more than one document, or out of bounds.
    """
    root, text = read_syntax(path)
    return Node(Document(path), (), root), text
