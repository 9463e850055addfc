"""Loads what a merge needs beside everything else, and torch without what makes that slow.

Loading torch takes most of a short merge. Python's cyclic garbage collector runs over its hundreds
of thousands of objects again and again, while loading (but for `cli.main`, which has it run rarely)
and once more at exit, and frees next to nothing: without it `python -c "import torch"` takes 1.7 s
instead of 3.0 (docs/measurements.md).
"""

from __future__ import annotations

import gc
import importlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streammerge.plan import Plan


def load_pipeline_beside() -> None:
    """Begin to load what a merge needs after planning, in a thread."""
    _load_beside("streammerge.execute", "streammerge.outputs.documents")


def load_torch_beside(plan: Plan, device: str) -> None:
    """Begin to load torch in a thread, if a plan needs it."""
    from streammerge.needs import needs_torch

    if device not in ("auto", "cpu") or needs_torch(plan):
        _load_beside("torch")


def _load_beside(*modules: str) -> None:
    threading.Thread(target=_load, args=modules, name="loader", daemon=True).start()


def _load(*modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # what is loaded now stays, so the collector need not look at it again
