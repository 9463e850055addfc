"""config.json files held against each other, and rewritten for the merged model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from streammerge.errors import printable
from streammerge.storage import FileIdentity
from streammerge.tensors import DTYPES, TensorInfo

# Keys that say where a file came from or how it is run, not what the model computes.
_IMMATERIAL = {
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "gradient_checkpointing",
}
_DTYPE_KEYS = ("dtype", "torch_dtype")


class Described(Protocol):
    """The part of a checkpoint that matters here."""

    label: str

    @property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json."""

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Path and identity of each side file."""

    def read_side_file(self, path: str) -> bytes:
        """The content of a side file."""


def compare_configs(checkpoints: Sequence[Described], donor: int) -> list[str]:
    """Return what matters and differs between the donor's config and tokenizer and the others'."""
    chosen, notes = checkpoints[donor], []
    for other in checkpoints:
        if other is chosen:
            continue
        if bool(other.config) and bool(chosen.config):
            notes += _differences(chosen, other)
        for path in sorted(_tokenizer_files(chosen) & _tokenizer_files(other)):
            if not _same_content(path, chosen, other):
                notes.append(f"{path} differs: taken from {chosen.label}, not {other.label}")
    if not chosen.config:
        notes.append(f"{chosen.label} has no config.json, so the output has none")
    return notes


def _same_content(path: str, one: Described, other: Described) -> bool:
    """Whether two files are the same, read only where neither size nor digest tells."""
    mine, theirs = one.side_files()[path], other.side_files()[path]
    if mine.size != theirs.size:
        return False
    if mine.digest and mine.digest.partition(":")[0] == theirs.digest.partition(":")[0]:
        return mine.digest == theirs.digest
    return one.read_side_file(path) == other.read_side_file(path)


def _tokenizer_files(checkpoint: Described) -> set[str]:
    wanted = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt")
    return {path for path in checkpoint.side_files() if path in wanted}


def _differences(chosen: Described, other: Described) -> list[str]:
    ours, theirs = dict(_flatten(chosen.config)), dict(_flatten(other.config))
    notes = []
    for key in sorted(ours.keys() | theirs.keys()):
        if key.rpartition(".")[2] not in _IMMATERIAL and ours.get(key) != theirs.get(key):
            mine, their = (_shown(values, key) for values in (ours, theirs))
            notes.append(
                f"config.json differs in {printable(key)}: {mine} in {chosen.label} (taken), "
                f"{their} in {other.label}"
            )
    return notes


def _shown(values: dict[str, Any], key: str) -> str:
    return printable(json.dumps(values[key]), 60) if key in values else "not set"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in config.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def config_with_dtype(
    config: Mapping[str, Any], before: Sequence[TensorInfo], after: Sequence[TensorInfo]
) -> dict[str, Any]:
    """Return a config whose dtype keys fit the output.

    Args:
        config: the donor's.
        before: the donor's tensors.
        after: the output's tensors.

    Where the dtype of most float elements is the same as the donor's, nothing changes.
    """
    old, new = _main_dtype(before), _main_dtype(after)
    if old == new or not new:
        return dict(config)
    return _rewritten(config, new)


def _rewritten(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in config.items():
        if key in _DTYPE_KEYS and isinstance(value, str):
            result[key] = dtype
        else:
            result[key] = _rewritten(value, dtype) if isinstance(value, dict) else value
    return result


def _main_dtype(tensors: Sequence[TensorInfo]) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.kind == "float":
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel
    return DTYPES[max(counts, key=lambda code: counts[code])].torch_name if counts else ""
