"""Faults on demand: which effect, at which requests, how often."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

from tests.support.hub.effects import Effect
from tests.support.hub.log import Entry


@dataclass
class Fault:
    """An effect, the requests that it hits, and how often it did."""

    effect: Effect
    kind: str
    repo: str
    file: str
    method: str
    times: int | None
    skip: int
    hits: int = field(default=0, init=False)

    def takes(self, entry: Entry) -> bool:
        """Whether this request is hit; counts it."""
        wanted = (self.kind, self.repo, self.file, self.method)
        found = (entry.kind, entry.repo, entry.file, entry.method)
        if not all(map(fnmatch.fnmatchcase, found, wanted)):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True

    @property
    def name(self) -> str:
        return type(self.effect).__name__
