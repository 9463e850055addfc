"""What a ranged request says, and whether an answer is the one to it (RFC 9110, section 14)."""

from __future__ import annotations

import re
from typing import Any

from streammerge.storage.retrying import BrokenAnswer

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def range_headers(begin: int, end: int) -> dict[str, str]:
    """Return the headers that ask for the bytes from `begin` up to `end`, as they are stored."""
    return {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}


def promised(answer: Any, begin: int, end: int, size: int) -> int:
    """Return how many bytes an answer brings; they begin where they were asked to.

    Args:
        answer: with `status_code` and `headers`.
        begin, end: the bytes that were asked for.
        size: of the file.

    Raises:
        BrokenAnswer: it is not the answer to that.
    """
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise BrokenAnswer("the server compresses what it sends")
    if answer.status_code == 200 and (begin, end) == (0, size):
        length = size
    else:
        found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        if answer.status_code != 206 or found is None:
            raise BrokenAnswer("the server does not answer ranged requests")
        first, last, total = int(found[1]), int(found[2]), found[3]
        if first != begin or not begin <= last < end or total not in ("*", str(size)):
            raise BrokenAnswer(f"the server sent {found[0]} instead of {begin}-{end - 1}")
        length = last + 1 - first
    if answer.headers.get("content-length", str(length)) != str(length):
        raise BrokenAnswer("the answer has another length than its range")
    return length
