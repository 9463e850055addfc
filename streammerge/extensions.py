"""Merge methods by name, those included that users bring: in packages, or in files of a recipe.

A package offers its methods by an entry point in the group `streammerge.methods`, whose value is a
module that registers them (`@streammerge.merge_method`). A file is run only where a recipe names it
below `plugins:` and a merge is asked for: verifying an output never runs a file that it names.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path

from streammerge.errors import RecipeError, printable
from streammerge.methods import METHODS, Method
from streammerge.methods.fusionbench import ELSEWHERE
from streammerge.plugins import UnknownNameError

GROUP = "streammerge.methods"


def find_method(name: str) -> Method:
    """Return the merge method of that name or alias.

    Raises:
        RecipeError: there is none.
    """
    try:
        if name not in METHODS:
            load_entry_points()
        return METHODS.get(name)
    except UnknownNameError as error:
        if name in ELSEWHERE:
            raise RecipeError(f"{name} is not here: {ELSEWHERE[name]}") from None
        raise RecipeError(str(error.args[0]), "`streammerge methods` lists them.") from None


@functools.cache
def load_entry_points() -> None:
    """Import the modules that installed packages offer, once.

    Raises:
        RecipeError: one of them cannot be imported.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:
            raise RecipeError(
                f"the plug-in {point.name!r} ({point.value}) cannot be loaded: {error}",
                "Repair or uninstall the package that brings it.",
            ) from error


def load_plugins(paths: Iterable[str]) -> None:
    """Run Python files that register methods, each once.

    Raises:
        RecipeError: a file is not there, or raises.
    """
    for path in paths:
        _load(str(Path(path).absolute()))


@functools.cache
def _load(path: str) -> None:
    name = f"streammerge_plugin_{hashlib.sha256(path.encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise RecipeError(
            f"there is no plug-in at {printable(path)}",
            "Give the path of a .py file; it counts from where the command runs.",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(
            f"the plug-in {printable(path)} raises {type(error).__name__}: {error}",
            "Run it with python to see where.",
        ) from error
