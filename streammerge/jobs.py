"""A merge as a job: what it is asked with, how it stands before the first byte, what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from streammerge.budget import Layout
from streammerge.checkpoint import Checkpoint
from streammerge.downloads import DownloadProgress
from streammerge.outputs import Pushed, Target, WrittenShard
from streammerge.outputs.targets import HubOptions
from streammerge.plan import Plan
from streammerge.storage import DownloadMode, IoMode

Reference = str | os.PathLike[str]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What was written.

    Attributes:
        out: the folder, or hf://namespace/name[@branch].
        shards: its weight files.
        parameters: number of elements.
        notes: what the user should know.
        nonfinite: NaN and infinite elements by tensor, where they were allowed.
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
    read_modes: dict[str, int]
    kept: int
    seconds: float
    fingerprint: str
    pushed: Pushed | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that is planned and checked, with nothing written yet."""

    plan: Plan
    checkpoints: list[Checkpoint]
    layout: Layout
    output: Target


class JobOptions(HubOptions, total=False):
    """How a merge is carried out, whatever is merged; see `api.merge`."""

    memory: str | int | None
    max_shard_size: str | int
    overwrite: bool
    strict: bool
    download: DownloadMode
    token: str | None


class Choices(TypedDict, total=False):
    """What of a recipe the caller may say as well; see `api.merge`."""

    dtype: str
    skip: Sequence[str]
    keep: Sequence[str]
    side_files_from: Reference | None


class PlanOptions(JobOptions, Choices, total=False):
    """The options of `average` that a plan depends on."""

    weights: Sequence[float] | None
    schedule: str | None
    last: int | None
    every: int | None
    steps: str | None


class RunOptions(TypedDict, total=False):
    """How a prepared merge runs; see `api.merge`."""

    device: str
    io: IoMode
    allow_nonfinite: bool
    progress: Progress
    download_progress: DownloadProgress


class AverageOptions(PlanOptions, RunOptions, total=False):
    """All options of `average`."""


class MergeOptions(JobOptions, Choices, RunOptions, total=False):
    """All options of `merge`."""
