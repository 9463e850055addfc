"""What happened while a plan was executed, and what a user is told of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from streammerge.outputs import Pushed, WrittenShard


@dataclass
class Report:
    """What happened while a plan was executed.

    Attributes:
        shards: the files, in the order of the plan.
        read_modes: how each file of each input was read.
        bytes_read: bytes of tensor data read.
        seconds: wall time.
    """

    shards: list[WrittenShard] = field(default_factory=list)
    read_modes: dict[tuple[int, str], str] = field(default_factory=dict)
    bytes_read: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Result:
    """What was written.

    Attributes:
        out: the folder, or hf://namespace/name[@branch].
        shards: its weight files.
        parameters: number of elements.
        notes: what the user should know.
        nonfinite, nonfinite_inputs: NaN and infinite elements by tensor, and those of each input by
            its label, where they were allowed.
        read_modes: how many input files were read in which way.
        kept: how many shards an interrupted run had finished before.
        seconds: wall time of the merge proper.
        fingerprint: of the plan.
        pushed: the commit on the Hub, where that was asked for.
    """

    out: Path | str
    shards: list[WrittenShard]
    parameters: int
    notes: list[str]
    nonfinite: dict[str, int]
    nonfinite_inputs: dict[str, int]
    read_modes: dict[str, int]
    kept: int
    seconds: float
    fingerprint: str
    pushed: Pushed | None = None
