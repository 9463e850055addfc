"""A finished output held against what it should be; each module looks at it in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CheckProgress = Callable[[str, int, int], None]
"""Called with the name of a stage, the bytes done since the last call, and those of the stage."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        where: a file of the output, a tensor, or a model that it was made from.
        what: what is wrong there.
    """

    where: str
    what: str
