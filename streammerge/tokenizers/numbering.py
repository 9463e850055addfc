"""Token ids in a config (`eos_token_id` and its like), in the numbers of another vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from streammerge.views.gather import Indices


def same_numbers(held: Indices) -> bool:
    """Whether every token that a model has keeps its number."""
    rows = np.flatnonzero(held >= 0)
    return bool((held[rows] == rows).all())


def renumbered(
    config: Mapping[str, Any], held: Indices, source: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a config whose ids stand for the same tokens as before.

    Args:
        config: an object whose keys ending in `_token_id` hold ids, or lists of them.
        held: the model's row for each row of the output, -1 where it lacks the token.
        source: the same object of the model that the tokenizer comes from: its ids take the place
            of those whose token the output does not have.
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        theirs = source.get(key)
        if isinstance(value, dict):
            result[key] = renumbered(value, held, theirs if isinstance(theirs, dict) else {})
        elif key.endswith("_token_id"):
            ids = value if isinstance(value, list) else [value]
            new = [_number(item, held) for item in ids]
            lost = None in [n for n, item in zip(new, ids, strict=True) if type(item) is int]
            moved = new if isinstance(value, list) else new[0]
            result[key] = theirs if lost and key in source else value if lost else moved
        else:
            result[key] = value
    return result


def _number(item: Any, held: Indices) -> Any:
    """Return the new number of an id, None where its token is gone; what is no id, as it is."""
    if type(item) is not int or item < 0:
        return item
    found = np.flatnonzero(held == item)
    return int(found[0]) if len(found) else None
