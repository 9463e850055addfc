"""A YAML file → a recipe: mergekit's format, and what goes beyond it (docs/recipes.md).

Every key is known here or refused by name, with its line.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any, get_args

from streammerge.errors import RecipeError
from streammerge.recipe.document import Entries, Node, read_document
from streammerge.recipe.entries import ModelEntry
from streammerge.recipe.keys import HINTS, KEYS, REFERENCE_HINTS, REFERENCE_KEYS
from streammerge.recipe.reading_parts import (
    Reference,
    build,
    read_list,
    read_model,
    read_module,
    read_rule,
    read_settings,
    read_slice,
    read_texts,
    read_tokenizer,
)
from streammerge.recipe.recipe import DtypeName, Recipe
from streammerge.recipe.selection import Selection, expand, select
from streammerge.schedules import coefficients


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        RecipeError: with file and line: not YAML, a key that is unknown or stands twice, a value
            that makes no sense, or a selection of checkpoints that finds none.
    """
    return _Reader(os.fspath(path), ()).read()


class _Reader:
    """Reads one file, and those that it names as models.

    Args:
        path: of the file.
        above: the files that led here.
    """

    def __init__(self, path: str, above: tuple[str, ...]) -> None:
        self._root, self._text = read_document(path)
        self._path, self._above = path, (*above, os.path.realpath(path))

    def read(self) -> Recipe:
        """Return the recipe of the whole file."""
        return self._recipe(self._root)

    def _recipe(self, node: Node) -> Recipe:
        inner: dict[str, Recipe] = {}
        entries = node.known(KEYS, HINTS)

        def reference(named: Node) -> str:
            return self._reference(named, inner)

        fields: dict[str, Any] = {
            "method": _method(node, entries),
            "models": _models(node, entries, reference),
            "slices": tuple(read_slice(n, reference) for n in read_list(entries, "slices")),
            "rules": tuple(read_rule(n, reference) for n in read_list(entries, "rules")),
            "parameters": read_settings(entries),
            "tokenizer": read_tokenizer(entries, reference),
            "recipes": inner,
        }
        if "modules" in entries:
            found = entries["modules"].entries()
            fields["modules"] = {key: read_module(n, reference) for key, n in found.items()}
        for key in ("base_model", "side_files_from"):
            if key in entries:
                fields[key] = reference(entries[key])
        fields |= _plain(entries)
        _check_inputs(node, entries, fields)
        recipe = build(Recipe, node, **fields)
        return recipe.read_from(self._path, node.lines(), self._text)

    def _reference(self, node: Node, inner: dict[str, Recipe]) -> str:
        """Return the text that names a model; a recipe in its place goes to `inner`."""
        if not node.is_mapping:
            text = node.text().strip()
            if text.endswith((".yml", ".yaml")) and not os.path.isdir(text) and text not in inner:
                inner[text] = self._follow(node, text)
            return text
        if {"merge_method", "models", "slices", "modules", "checkpoints"} & node.entries().keys():
            recipe = self._recipe(node)
            label = f"({recipe.method} of {', '.join(recipe.inputs)})"
            while inner.get(label, recipe) != recipe:
                label += "'"
            inner[label] = recipe
            return label
        return _spelled(node)

    def _follow(self, node: Node, path: str) -> Recipe:
        if os.path.realpath(path) in self._above:
            raise node.error(f"{path} leads back to itself", "A recipe cannot be its own input.")
        try:
            return _Reader(path, self._above).read()
        except RecipeError as error:
            error.add_note(f"named in {self._path}, line {node.line}")
            raise


def _method(node: Node, entries: Entries) -> str:
    if "merge_method" in entries:
        if "name" in entries:
            raise entries["name"].error(
                "`name` beside `merge_method`: only mergekit-multi's files name their merges",
                "Remove it; to merge a merge, name its file as a model: `- model: first.yml`.",
            )
        return entries["merge_method"].text()
    if "name" in entries:
        return entries["name"].text()
    if {"schedule", "checkpoints"} & entries.keys():
        return "average"
    raise node.error("no merge_method", "Write one, such as `merge_method: linear`.")


def _models(node: Node, entries: Entries, reference: Reference) -> tuple[ModelEntry, ...]:
    if "checkpoints" not in entries:
        for key in ("last", "every", "steps"):
            if key in entries:
                raise entries[key].error(
                    f"`{key}` chooses from `checkpoints:`, which is not there",
                    "Write `checkpoints: run/checkpoint-*` instead of `models:`.",
                )
        return tuple(read_model(item, reference) for item in read_list(entries, "models"))
    try:
        selection = Selection(
            steps=entries["steps"].text() if "steps" in entries else None,
            every=entries["every"].integer() if "every" in entries else None,
            last=entries["last"].integer() if "last" in entries else None,
        )
        chosen = select(expand(read_texts(entries, "checkpoints")), selection)
    except RecipeError as error:
        raise _placed(entries["checkpoints"], error) from None
    return tuple(ModelEntry(model=model) for model in chosen)


def _check_inputs(node: Node, entries: Entries, fields: dict[str, Any]) -> None:
    kinds = [key for key in ("models", "checkpoints", "slices", "modules") if key in entries]
    if len(kinds) != 1:
        raise node.error(
            f"{' and '.join(kinds) if kinds else 'none of models, slices and modules'}: "
            "a recipe has exactly one of models, checkpoints, slices and modules"
        )
    if not any(fields.get(key) for key in ("models", "slices", "modules")):
        raise entries[kinds[0]].error(f"{kinds[0]} is empty")
    if "schedule" in entries and fields["models"]:
        try:
            coefficients(fields["schedule"], len(fields["models"]))
        except RecipeError as error:
            raise _placed(entries["schedule"], error) from None


def _placed(node: Node, error: RecipeError) -> RecipeError:
    """Return an error with a line, which it lacks; one that has it stays as it is."""
    placed = node.error("")
    known = error.message.startswith(placed.message.rpartition(", line")[0] + ", line")
    return error if known else RecipeError(placed.message + error.message, error.remedy)


def _plain(entries: Entries) -> dict[str, Any]:
    """Return the fields that are texts, numbers and lists of texts."""
    fields: dict[str, Any] = {key: read_texts(entries, key) for key in _TEXTS if key in entries}
    if "before_layers" in entries:
        fields["before_layers"] = read_texts(entries, "before_layers")
    for key in ("dtype", "out_dtype", "compute_dtype"):
        if key in entries:
            fields[key] = _dtype(entries[key], ("float64",) if key == "compute_dtype" else _DTYPES)
    if "rows" in entries:
        fields["rows"] = entries["rows"].text()
    if "chat_template" in entries:
        fields["chat_template"] = entries["chat_template"].text()
    if "seed" in entries:
        fields["seed"] = entries["seed"].integer()
    if "schedule" in entries:
        node = entries["schedule"]
        explicit = node.is_list and ",".join(item.text() for item in node.items())
        fields["schedule"] = f"explicit:{explicit}" if explicit else node.text()
    return fields


_TEXTS = ("layers", "skip", "keep", "plugins")
_DTYPES = get_args(DtypeName)


def _dtype(node: Node, known: Sequence[str]) -> str:
    name = node.text().removeprefix("torch.")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose one of {', '.join(known)}."
        raise node.error(f"{name!r} is no dtype that models are merged in", hint)
    return name


def _spelled(node: Node) -> str:
    """Return the text for a model that is given as a mapping, as mergekit writes some."""
    entries = node.known(REFERENCE_KEYS, REFERENCE_HINTS)
    if "path" in entries:
        revision = f"@{entries['revision'].text()}" if "revision" in entries else ""
        return entries["path"].text() + revision
    if "model" not in entries:
        raise node.error("a model without `model` or `path`", "Write `model: path/to/model`.")
    parts = [entries[key] for key in ("model", "lora") if key in entries]
    return "+".join(_spelled(part) if part.is_mapping else part.text() for part in parts)
