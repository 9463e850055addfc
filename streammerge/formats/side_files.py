"""The files of a checkpoint besides weights that a loader of the merged model needs.

An allow-list by role: anything not named here stays behind, above all other weights, optimizer and
trainer state, caches and index files.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from streammerge.errors import CheckpointError, is_unicode
from streammerge.storage import Storage

# how text becomes tokens
_TOKENIZER = (
    "tokenizer*.json",
    "tokenizer*.model",
    "tekken.json",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece*.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_ROLES = (
    *_TOKENIZER,
    # what the model is
    "config.json",
    "generation_config.json",
    "configuration.json",
    "params.json",
    # how images and sound become tensors
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "feature_extractor_config.json",
    # sentence-transformers
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    # terms of use
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
_MAX_BYTES = 256_000_000  # no side file of any known model comes near
_MAX_MODULES = 100_000
_PLAIN_NAME = re.compile(r"\w[\w.-]*")


def is_side_file(path: str) -> bool:
    """Whether a file at this path plays a role that the allow-list names."""
    return any(fnmatchcase(path, pattern) for pattern in _ROLES)


def is_tokenizer_file(path: str) -> bool:
    """Whether a file at this path belongs to a tokenizer, its chat template included."""
    return any(fnmatchcase(path, pattern) for pattern in _TOKENIZER)


def select_side_files(storage: Storage, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the side files of a checkpoint and their sizes.

    Besides the allow-list these are the Python files that `auto_map` in config.json names, and the
    settings of the further modules of a sentence-transformers model.
    """
    files = storage.list()
    folders = _module_folders(storage, files)
    if "tokenizer_config.json" in files:
        folders.append("additional_chat_templates")
    for folder in folders:
        with contextlib.suppress(CheckpointError):  # a folder that is not there has none
            files = {**files, **storage.list(folder)}
    code = _code_files(config)
    return {
        path: size
        for path, size in sorted(files.items())
        if size <= _MAX_BYTES
        and is_unicode(path)
        and (is_side_file(path) or path in code or _is_module_config(path, folders))
    }


def _is_module_config(path: str, folders: list[str]) -> bool:
    folder, _, name = path.rpartition("/")
    return folder in folders and name in ("config.json", "vocab.txt", "merges.txt")


def _module_folders(storage: Storage, files: Mapping[str, int]) -> list[str]:
    if "modules.json" not in files:
        return []
    try:
        modules = json.loads(storage.read("modules.json", 0, _MAX_MODULES))
        paths = [module["path"] for module in modules if module["path"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []
    return [path for path in paths if isinstance(path, str) and _PLAIN_NAME.fullmatch(path)]


def _code_files(config: Mapping[str, Any]) -> set[str]:
    auto_map = config.get("auto_map")
    names = auto_map.values() if isinstance(auto_map, dict) else ()
    flat = [n for entry in names for n in (entry if isinstance(entry, list) else [entry])]
    modules = {n.split("--")[-1].split(".")[0] for n in flat if isinstance(n, str)}
    return {f"{module}.py" for module in modules}
