"""Does transformers take it? A load on the meta device: every name and shape, and no memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streammerge.checks import Finding
from streammerge.errors import HeaderError, printable
from streammerge.formats.safetensors import load_json_object

WHERE = "load"
_SETS = {
    "missing_keys": "transformers wants tensors that the output lacks",
    "unexpected_keys": "transformers has no use for tensors of the output",
    "mismatched_keys": "transformers wants other shapes",
    "error_msgs": "transformers complains",
}


def check_load(out: Path) -> tuple[str, list[Finding]]:
    """Load an output structurally; return the class that took it ("" for none), and the findings.

    Code that comes with the model is never run.
    """
    try:
        import transformers
    except ImportError:
        return "", [Finding(WHERE, "transformers is not installed: pip install transformers")]
    name, custom = _architecture(out)
    if not name:
        return "", [Finding("config.json", "names no architecture that could be loaded")]
    try:
        model_class: Any = getattr(transformers, name, None)
        if not hasattr(model_class, "from_pretrained"):
            code = ", as it brings code of its own, which is never run" if custom else ""
            what = f"{printable(name, 80)} is no class of transformers {transformers.__version__}"
            return "", [Finding(WHERE, what + code)]
        with _quiet(transformers):
            _, info = model_class.from_pretrained(
                os.fspath(out), device_map="meta", output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # whatever a foreign library raises: it did not load
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return "", [Finding(WHERE, f"transformers cannot load it: {printable(reason[0])}")]
    return name, list(_problems(info))


def _architecture(out: Path) -> tuple[str, bool]:
    """Return the first architecture that config.json names ("" for none), and if it has code."""
    try:
        config = load_json_object((out / "config.json").read_bytes(), "the file")
    except (OSError, HeaderError):
        return "", False
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        return "", False
    return names[0], "auto_map" in config


def _problems(info: dict[str, Any]) -> Iterator[Finding]:
    for key, what in _SETS.items():
        names = sorted(str(name) for name in info.get(key) or ())
        if names:
            shown = ", ".join(printable(name, 80) for name in names[:3])
            yield Finding(WHERE, f"{what} ({len(names)}): {shown}")


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from writing to the terminal: what it has to say becomes findings."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
