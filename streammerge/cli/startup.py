"""Loads torch beside everything else, and without what makes that slow.

Loading torch takes most of a short merge. Python's cyclic garbage collector runs over its hundreds
of thousands of objects again and again, while loading and once more at exit, and frees next to
nothing: without it `python -c "import torch"` takes 1.7 s instead of 3.0 (docs/measurements.md).
"""

from __future__ import annotations

import gc
import importlib
import threading


def load_torch_beside() -> None:
    """Begin to load what a merge needs after planning, in a thread."""
    gc.disable()
    threading.Thread(target=_load, name="loader", daemon=True).start()


def _load() -> None:
    importlib.import_module("streammerge.execute")  # torch comes with it
    importlib.import_module("streammerge.outputs.documents")
    gc.freeze()  # what is loaded now stays, so the collector need not look at it again
    gc.enable()
