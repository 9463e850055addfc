"""config.json for a model whose layers were put together anew.

Which key counts a stack's layers is not looked up by architecture: it is the one whose value is the
number of layers that the donor has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
_ENCODER_COUNTS = ("encoder_layers", "num_encoder_layers")
_DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
_INDICES = ("mlp_only_layers", "attn_layer_indices", "full_attn_idxs", "no_rope_layer_indices")
"""Lists of the numbers of layers that are of some kind."""
_UNTOUCHED = ("first_k_dense_replace", "max_window_layers", "sliding_window_pattern")
"""Numbers that depend on which layer is where, and that no rule can rewrite."""
_VISION = ("vision", "visual", "image")


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """A layer of the output: the config of the model it comes from, and its number there."""

    config: Mapping[str, Any]
    number: int


def with_layers(
    config: Mapping[str, Any], stack: str, before: int, layers: Sequence[OutputLayer]
) -> tuple[dict[str, Any], list[str]]:
    """Return a config for the new layers, and what a user should look at.

    Args:
        config: the donor's.
        stack: what stands before the layers' numbers in names; tells towers apart.
        before: number of layers of the stack in the donor.
        layers: those of the output.
    """
    if not config:
        return {}, []
    paths = _find(config, stack, before)
    if not paths:
        return dict(config), [
            f"config.json does not say that {stack} has {before} layers: write there that it has "
            f"{len(layers)} now"
        ]
    notes: list[str] = []
    for path in paths:
        config = _replaced(config, path, _with_layers(config, path, stack, before, layers))
        untouched = {key: _at(config, path).get(key) for key in _UNTOUCHED}
        notes += [
            f"config.json says {key} = {value}, as in the donor: check that it fits"
            for key, value in untouched.items()
            if isinstance(value, int)
        ]
    return dict(config), notes


def _with_layers(
    config: Mapping[str, Any],
    path: tuple[str, ...],
    stack: str,
    before: int,
    layers: Sequence[OutputLayer],
) -> dict[str, Any]:
    part = dict(_at(config, path))
    counts = _count_keys(part, stack, before)
    for key, value in part.items():
        if key in counts:
            part[key] = len(layers)
        elif key in _INDICES and isinstance(value, list):
            part[key] = [i for i, layer in enumerate(layers) if _lists(layer, path, key)]
        elif isinstance(value, list) and len(value) == before and _per_layer(key):
            part[key] = [_own(layer, path, key, value) for layer in layers]
    return part


def _find(config: Mapping[str, Any], stack: str, before: int) -> list[tuple[str, ...]]:
    """Return the parts of a config that count the stack's layers; () is the top."""
    found: list[tuple[str, ...]] = [()] if _count_keys(config, stack, before) else []
    for key, value in config.items():
        if isinstance(value, dict) and _count_keys(value, stack, before):
            found.append((key,))
    sees = any(word in stack for word in _VISION)
    fitting = [path for path in found if sees == any(w in "".join(path) for w in _VISION)]
    return found if len(found) == 1 else fitting


def _count_keys(part: Mapping[str, Any], stack: str, before: int) -> list[str]:
    words = stack.split(".")
    for word, keys in (("decoder", _DECODER_COUNTS), ("encoder", _ENCODER_COUNTS)):
        own = [key for key in keys if part.get(key) == before]
        if word in words and own:
            both = _COUNTS if word == "encoder" else ()
            return own + [key for key in both if part.get(key) == before]
    return [key for key in _COUNTS if part.get(key) == before and not isinstance(part[key], bool)]


def _per_layer(key: str) -> bool:
    return "layer" in key or key in ("block_types", "attn_types", "layers_block_type")


def _lists(layer: OutputLayer, path: tuple[str, ...], key: str) -> bool:
    numbers = _at(layer.config, path).get(key)
    return isinstance(numbers, list) and layer.number in numbers


def _own(layer: OutputLayer, path: tuple[str, ...], key: str, donors: list[Any]) -> Any:
    values = _at(layer.config, path).get(key)
    if isinstance(values, list) and layer.number < len(values):
        return values[layer.number]
    return donors[min(layer.number, len(donors) - 1)]


def _at(config: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for key in path:
        inner = config.get(key)
        config = inner if isinstance(inner, dict) else {}
    return config


def _replaced(
    config: Mapping[str, Any], path: tuple[str, ...], part: dict[str, Any]
) -> dict[str, Any]:
    return {**config, path[0]: part} if path else part
