"""What happened while a plan was executed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from streammerge.outputs import WrittenShard


@dataclass
class Report:
    """What happened while a plan was executed.

    Attributes:
        shards: the files, in the order of the plan.
        read_modes: how many input files were read in which way.
        bytes_read: bytes of tensor data read.
        nonfinite: elements of the output that are NaN or infinite, by tensor.
        seconds: wall time.
    """

    shards: list[WrittenShard] = field(default_factory=list)
    read_modes: Counter[str] = field(default_factory=Counter)
    bytes_read: int = 0
    nonfinite: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
