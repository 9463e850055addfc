"""YAML nodes → the parts of a recipe: settings, models, slices, modules, rules, tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from streammerge.errors import RecipeError
from streammerge.recipe.document import Entries, Node
from streammerge.recipe.entries import (
    ModelEntry,
    ModuleEntry,
    Rule,
    SliceEntry,
    SourceEntry,
)
from streammerge.recipe.settings import Conditional, Data, Setting, Settings, Value
from streammerge.tokenizers.wish import TokenizerWish, tokenizer_wish

D = TypeVar("D", bound=Data)
Reference = Callable[[Node], str]
"""Reads what names a model: a text, a mapping, or a recipe in its place."""

_BELOW = "Settings of a method stand one level deeper, below `parameters:`."
_METHOD_KEYS = ("weight", "density", "t", "scale", "gamma", "epsilon", "lambda", "normalize")
_MISPLACED = dict.fromkeys(_METHOD_KEYS, _BELOW)
_MODEL_HINTS = _MISPLACED | {
    "layer_range": "Layers are chosen below `slices:`; below `models:` every model is whole."
}
_SLICE_HINTS = _MISPLACED | {
    "residual_weight": "mergekit reads it and does nothing with it; remove it."
}


def build(kind: type[D], node: Node, **fields: Any) -> D:
    """Return a part of a recipe; what it refuses becomes an error with a line."""
    try:
        return kind.build(**fields)
    except RecipeError as error:
        raise node.error(error.message, error.remedy) from None


def read_list(entries: Entries, key: str) -> list[Node]:
    """Return the items of a list; none where the key is not there."""
    return entries[key].items() if key in entries else []


def read_texts(entries: Entries, key: str) -> tuple[str, ...]:
    """Return one text or several; none where the key is not there."""
    if key not in entries:
        return ()
    node = entries[key]
    return tuple(item.text() for item in node.items()) if node.is_list else (node.text(),)


def read_settings(entries: Entries) -> Settings:
    """Return what stands below `parameters`."""
    if "parameters" not in entries:
        return {}
    return {key: read_setting(node) for key, node in entries["parameters"].entries().items()}


def read_setting(node: Node) -> Setting:
    """Return a value, a gradient, or values by filter."""
    if node.is_mapping:
        return (_read_case(node),)
    if not node.is_list:
        return node.value()
    items = node.items()
    if items and all(item.is_mapping for item in items):
        return tuple(_read_case(item) for item in items)
    return _read_gradient(node, items)


def _read_case(node: Node) -> Conditional:
    entries = node.known(("filter", "value"))
    if "value" not in entries:
        raise node.error("a filter without a value", "Write `- filter: …` and `value: …` below it.")
    value = entries["value"]
    return build(
        Conditional,
        node,
        filter=entries["filter"].text() if "filter" in entries else None,
        value=_read_gradient(value, value.items()) if value.is_list else value.value(),
    )


def _read_gradient(node: Node, items: list[Node]) -> tuple[Value, ...]:
    if not items or any(item.is_mapping or item.is_list for item in items):
        raise node.error(
            "a list of settings is either a gradient of values or a list of filters",
            "Write [0, 0.5, 1], or `- filter: …` with `value: …` below it.",
        )
    values = tuple(item.value() for item in items)
    kinds = {isinstance(v, int | float) and not isinstance(v, bool) for v in values}
    if len(kinds) > 1:
        raise node.error("a gradient holds either numbers or words, not both")
    return values


def read_model(node: Node, reference: Reference) -> ModelEntry:
    """Return an item of `models`: a mapping, or a reference alone."""
    if not node.is_mapping:
        return build(ModelEntry, node, model=reference(node))
    entries = node.known(("model", "parameters"), _MODEL_HINTS)
    if "model" not in entries:
        raise node.error("a model without a name", "Write `- model: path/to/model`.")
    model = reference(entries["model"])
    return build(ModelEntry, node, model=model, parameters=read_settings(entries))


def read_slice(node: Node, reference: Reference) -> SliceEntry:
    """Return an item of `slices`."""
    entries = node.known(("sources", "base_model", "parameters"), _SLICE_HINTS)
    return build(
        SliceEntry,
        node,
        sources=tuple(_read_source(item, reference) for item in read_list(entries, "sources")),
        base_model=reference(entries["base_model"]) if "base_model" in entries else None,
        parameters=read_settings(entries),
    )


def _read_source(node: Node, reference: Reference) -> SourceEntry:
    entries = node.known(("model", "layer_range", "parameters"), _SLICE_HINTS)
    for key in ("model", "layer_range"):
        if key not in entries:
            raise node.error(f"a source without {key}", "Write `model:` and `layer_range: [0, 8]`.")
    return build(
        SourceEntry,
        node,
        model=reference(entries["model"]),
        layer_range=tuple(item.integer() for item in entries["layer_range"].items()),
        parameters=read_settings(entries),
    )


def read_module(node: Node, reference: Reference) -> ModuleEntry:
    """Return a value of `modules`."""
    entries = node.known(("tensors", "models", "slices", "parameters"), _SLICE_HINTS)
    return build(
        ModuleEntry,
        node,
        tensors=read_texts(entries, "tensors"),
        models=tuple(read_model(item, reference) for item in read_list(entries, "models")),
        slices=tuple(read_slice(item, reference) for item in read_list(entries, "slices")),
        parameters=read_settings(entries),
    )


def read_rule(node: Node, reference: Reference) -> Rule:
    """Return an item of `rules`."""
    keys = ("tensors", "action", "method", "parameters", "weights", "model")
    hints = _MISPLACED | {
        "merge_method": "A rule's method is called `method`.",
        "weight": "Write `weights: [1, 2]`, one for each model; or `weight` below `parameters:`.",
    }
    entries = node.known(keys, hints)
    fields: dict[str, Any] = {
        key: entries[key].text() for key in ("action", "method") if key in entries
    }
    if "weights" in entries:
        fields["weights"] = tuple(item.value() for item in entries["weights"].items())
    if "model" in entries:
        fields["model"] = reference(entries["model"])
    return build(
        Rule,
        node,
        tensors=read_texts(entries, "tensors"),
        parameters=read_settings(entries),
        **fields,
    )


def read_tokenizer(entries: Entries, reference: Reference) -> TokenizerWish | None:
    """Return what `tokenizer`, a mapping or its source alone, or `tokenizer_source` asks for."""
    keys = [key for key in ("tokenizer", "tokenizer_source") if key in entries]
    if not keys:
        return None
    node, wish = entries[keys[0]], dict[str, Any]()
    if node.is_mapping and keys[0] == "tokenizer":
        parts = node.known(("source", "tokens", "pad_to_multiple_of", "embeddings"))
        tokens = parts["tokens"].entries() if "tokens" in parts else {}
        wish = {token: _read_token(item, reference) for token, item in tokens.items()}
        wish = {"tokens": wish, "embeddings": read_texts(parts, "embeddings")}
        if "source" in parts:
            wish["source"] = reference(parts["source"])
        if "pad_to_multiple_of" in parts:
            wish["pad_to_multiple_of"] = parts["pad_to_multiple_of"].integer()
    else:
        wish["source"] = reference(node)
    try:
        return tokenizer_wish(reference(entries[keys[1]]) if keys[1:] else None, wish)
    except RecipeError as error:
        raise node.error(error.message, error.remedy) from None


def _read_token(node: Node, reference: Reference) -> dict[str, Any]:
    entries = node.known(("source", "force"))
    wish: dict[str, Any] = {"force": entries["force"].value()} if "force" in entries else {}
    source = entries.get("source")
    if source is not None and source.is_mapping and "kind" in source.entries():
        told = source.known(("kind", "model", "token", "token_id"))
        row: dict[str, Any] = {key: told[key].text() for key in ("kind", "token") if key in told}
        row |= {"model": reference(told["model"])} if "model" in told else {}
        row |= {"token_id": told["token_id"].integer()} if "token_id" in told else {}
        wish["source"] = row
    elif source is not None:
        wish["source"] = reference(source)
    return wish
