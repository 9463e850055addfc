"""Around every merge of every test: the inputs keep their bytes, and their modification times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streammerge import api
from streammerge.recipe import Recipe

Seen = dict[str, tuple[int, int, str]]
_MOST = 64_000_000  # bytes of a file above which its size and its times have to do


def look_at(recipe: Recipe) -> Seen:
    """Modification time, size and digest of everything in the inputs that are folders or files."""
    seen: Seen = {}
    for reference in recipe.references:
        path = Path(reference)
        folder = path if path.is_dir() else path.parent
        if path.exists():
            for each in (folder, *sorted(folder.rglob("*"))):
                stat = each.lstat()
                small = each.is_file() and stat.st_size < _MOST
                digest = hashlib.sha256(each.read_bytes()).hexdigest() if small else ""
                seen[str(each)] = (stat.st_mtime_ns, stat.st_size, digest)
    return seen


@contextmanager
def left_alone(recipe: Recipe) -> Iterator[None]:
    """Fail where an input is not what it was before the block, however the block ends."""
    before = look_at(recipe)
    try:
        yield
    finally:
        after = look_at(recipe)
        changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
        assert not changed, f"a merge touched its inputs: {changed}"


def watch(patch: pytest.MonkeyPatch) -> None:
    """Look at the inputs before and after each planning and each execution in this process."""

    def watched(original: Callable[..., Any], recipe_of: Callable[[Any], Recipe]) -> Any:
        def call(first: Any, *args: Any, **options: Any) -> Any:
            with left_alone(recipe_of(first)):
                return original(first, *args, **options)

        return call

    patch.setattr(api, "prepare", watched(api.prepare, lambda recipe: recipe))
    patch.setattr(api, "execute", watched(api.execute, lambda prepared: prepared.plan.recipe))
