"""YAML as untrusted text: a file becomes PyYAML's syntax tree, in bounded time and memory."""

from __future__ import annotations

from pathlib import Path

from yaml import Node, YAMLError
from yaml.composer import Composer
from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.resolver import BaseResolver

from streammerge.errors import RecipeError, printable

MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 30_000, 40


class _TooMuchError(Exception):
    """A document has too many parts, or too deep ones."""


class _Loader(Composer, CParser, BaseResolver):
    """YAML's syntax alone: without a constructor there is nothing a tag could call.

    libyaml parses 15 times as fast as PyYAML's own parser, which takes 20 s for 1 MB of brackets.
    Nodes are made here all the same: libyaml's depth has no bound but the stack.
    """

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._seen = self._depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Make a node and all below it, within bounds."""
        self._seen += 1
        self._depth += 1
        if self._seen > MAX_NODES or self._depth > MAX_DEPTH:
            raise _TooMuchError
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_syntax(path: str) -> tuple[Node, str]:
    """Return the root of a YAML file's syntax tree, and the file's text.

    Raises:
        RecipeError: it is not there, not YAML, more than one document, or out of bounds.
    """
    try:
        size = Path(path).stat().st_size
        raw = Path(path).read_bytes() if size <= MAX_BYTES else b""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"cannot read the recipe {printable(path)}: {reason}") from None
    if size > MAX_BYTES:
        raise RecipeError(f"{path} has {size:,} bytes, no recipe has over {MAX_BYTES:,}")
    try:
        text = raw.decode("utf-8-sig")
        root = _Loader(text).get_single_node()
    except _TooMuchError:
        raise too_much(path) from None
    except (YAMLError, UnicodeError) as error:
        raise _syntax_error(path, error) from None
    if root is None:
        raise RecipeError(f"{path} is empty", "docs/recipes.md says what a recipe looks like.")
    return root, text


def too_much(label: str) -> RecipeError:
    """Return the error for a document that is out of bounds."""
    return RecipeError(
        f"{label} has over {MAX_NODES:,} parts, or parts nested {MAX_DEPTH} deep",
        "No recipe needs that; look for an alias that repeats itself.",
    )


def _syntax_error(path: str, error: Exception) -> RecipeError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}, line {mark.line + 1}" if mark else path
    what = getattr(error, "problem", None) or str(error)
    if "another document" in what or "single document" in str(getattr(error, "context", "")):
        return RecipeError(
            f"{where}: a second document begins",
            "One recipe in each file; name the other file as a model: `- model: first.yml`.",
        )
    return RecipeError(f"{where}: not YAML: {printable(what, 120)}", "Mind indentation and quotes.")
