"""How long what describes a model may be: bounds that no model comes near, and hostile files hit.

Parsed JSON takes up to 30 times its bytes of memory (docs/measurements.md). So a description must
not be longer than what it describes: who wants 100 MB of memory has to bring 3 MB of weights along.
"""

from __future__ import annotations

from streammerge.errors import HeaderError

SMALL = 1_500_000
"""Bytes that are always allowed: less than 50 MB of memory, and less than a second."""
MOST = 25_000_000
"""Bytes beyond which nothing is read. huggingface_hub reads no longer headers either; 190,000
tensors have room in one."""
DEEPEST = 100
"""Levels of nested JSON."""


def refuse_length(what: str, nbytes: int, described: int) -> None:
    """Refuse a description that is too long.

    Args:
        what: names it.
        nbytes: its length.
        described: bytes of what it describes.

    Raises:
        HeaderError: it is longer than what it describes, or than anything.
    """
    if nbytes > MOST:
        raise HeaderError(f"{what} of {nbytes:,} bytes is over the limit of {MOST:,}")
    if nbytes > max(SMALL, described):
        raise HeaderError(
            f"{what} of {nbytes:,} bytes is longer than the {described:,} bytes that it describes"
        )


def refuse_depth(value: object, what: str) -> None:
    """Refuse JSON in which recursion over it would get lost.

    Raises:
        HeaderError: it is nested too deep.
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)  # type: ignore[attr-defined]
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise HeaderError(f"{what} is nested more than {DEEPEST} levels deep")
