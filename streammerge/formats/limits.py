"""How long what describes a model may be: bounds that no model comes near, and hostile files hit.

Parsed JSON takes 7 (a header) to 35 times its bytes of memory (docs/measurements.md). So whoever
wants gigabytes of memory has to bring weights along, as a model would.
"""

from __future__ import annotations

from streammerge.errors import HeaderError

SMALL = 150_000
"""Bytes that are always allowed: 13 MB of memory and 0.6 s at most, whatever stands in them."""
MOST = 100_000_000
"""Bytes beyond which nothing is read: the limit of the safetensors library for headers. There is
room for 700,000 tensors in a header, and for 900,000 in an index."""
SHARE = 64
"""Bytes for each byte of what is described. A tensor takes 110 to 130 bytes of a header and 80 to
120 of an index, so one is refused where tensors have less than about two bytes on average."""
DEEPEST = 100
"""Levels of nested JSON."""


def refuse_length(what: str, nbytes: int, described: int) -> None:
    """Refuse a description that is too long.

    Args:
        what: names it.
        nbytes: its length.
        described: bytes of what it describes.

    Raises:
        HeaderError: it is far longer than what it describes, or longer than anything.
    """
    if nbytes > MOST:
        raise HeaderError(f"{what} of {nbytes:,} bytes is over the limit of {MOST:,}")
    if nbytes > max(SMALL, SHARE * described):
        raise HeaderError(
            f"{what} of {nbytes:,} bytes is far longer than the {described:,} bytes that it "
            "describes"
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
