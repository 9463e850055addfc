"""The log of requests, with the questions that tests ask of it."""

from __future__ import annotations

import fnmatch
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Entry:
    """One request. Bytes are those of the bodies that really moved; HEAD has none."""

    kind: str  # the endpoint: "info", "resolve", "download", "commit", …; see routes.py
    method: str
    path: str
    repo: str = ""
    file: str = ""  # path in the repository; of an upload, the sha256
    part: str = ""  # of an upload in parts, its number
    revision: str = ""
    range: tuple[int, int | None] | None = None  # (first byte, byte after the last or None)
    user: str | None = None
    status: int = 0  # 0: the connection was dropped before an answer
    sent: int = 0  # bytes of the answer's body
    received: int = 0  # bytes of the request's body
    complete: bool = False  # the whole answer was sent
    commit: str = ""  # the commit that was made, whether or not the answer arrived
    fault: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 400 and self.complete


class Log:
    """Requests in the order in which they came, of both hosts."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return "\n".join(
            f"{e.kind:14} {e.method:4} {e.status} ↓{e.sent} ↑{e.received} {e.range or ''} {e.path}"
            f" {e.fault}"
            for e in self
        )

    def clear(self) -> None:
        self.entries.clear()

    def find(
        self,
        kind: str = "*",
        *,
        repo: str = "*",
        file: str = "*",
        method: str = "*",
        where: Callable[[Entry], bool] = lambda _: True,
    ) -> list[Entry]:
        """Requests whose endpoint, repository, file and method match the globs."""
        globs = (kind, repo, file, method)
        return [
            e
            for e in self
            if all(map(fnmatch.fnmatchcase, (e.kind, e.repo, e.file, e.method), globs)) and where(e)
        ]

    def downloaded(self, *, repo: str = "*", file: str = "*") -> int:
        """Bytes of file content that were sent, from the Hub itself and from the store."""
        return sum(e.sent for e in self.find("download", repo=repo, file=file))

    def uploaded(self) -> int:
        """Bytes of large files that were received."""
        return sum(e.received for e in self.find("upload"))

    def moved(self) -> int:
        """Bytes of all bodies, in both directions."""
        return sum(e.sent + e.received for e in self)

    def ranges(self, file: str = "*", *, repo: str = "*") -> list[tuple[int, int | None]]:
        """The byte ranges asked of the content; a request without a range is (0, None)."""
        found = self.find("download", file=file, repo=repo)
        return [e.range or (0, None) for e in found]

    def commits(self, repo: str = "*") -> int:
        """How many commits were made by requests, answered or not."""
        return len(self.find("commit", repo=repo, where=lambda e: bool(e.commit)))

    def uploaded_twice(self) -> list[str]:
        """The sha256 of large files that one repository received more than once, or parts of."""
        taken = Counter((e.repo, e.file, e.part) for e in self.find("upload") if e.ok)
        return [oid for (_, oid, _), times in taken.items() if times > 1]

    def read_twice(self, *, repo: str = "*", file: str = "*") -> int:
        """Bytes of content sent beyond the first time, over all files."""
        spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for e in self.find("download", repo=repo, file=file):
            start = e.range[0] if e.range else 0
            spans.setdefault((e.repo, e.file), []).append((start, start + e.sent))
        return sum(sum(b - a for a, b in found) - _covered(found) for found in spans.values())


def _covered(spans: list[tuple[int, int]]) -> int:
    total, reached = 0, -1
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
