"""The options of a merge: what each is for, its type and its default, written once for Python.

`cli/options.py` says the same for the command line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypedDict

from streammerge.downloads import DownloadProgress
from streammerge.outputs.targets import HubOptions
from streammerge.storage import DownloadMode, IoMode

Reference = str | os.PathLike[str]
"""A folder with safetensors weights, a .safetensors file, or org/name[@revision] on the Hub."""
Progress = Callable[[int], None]


class PlanOptions(HubOptions, total=False):
    """Where the output goes and within what bounds; see also `outputs.targets.HubOptions`.

    Keys:
        memory: bound on the process's anonymous memory, e.g. "1GiB" or bytes; by default enough for
            full speed.
        max_shard_size: bytes of an output shard at most, e.g. "10GB"; by default 5 GB, and an even
            number of shards for an output of more than 3 GB.
        overwrite: replace a checkpoint that is in `out` already.
        strict: refuse models that look unrelated, which is only a note otherwise.
        download: weights on the Hub go through the "cache" of its client, or "stream" unstored.
        token: for the Hub; the one that is logged in by default.
    """

    memory: str | int | None
    max_shard_size: str | int | None
    overwrite: bool
    strict: bool
    download: DownloadMode
    token: str | None


class RunOptions(TypedDict, total=False):
    """How a merge is carried out; nothing here changes a bit.

    Keys:
        device: auto, cpu, cuda, cuda:<i> or mps.
        io: how inputs are read: auto, direct, mmap or buffered.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.
        command: the arguments that led here, for the card; by default a command line that does the
            same.
        progress: called with the bytes read, written and sent since the last call.
        download_progress: called with the bytes downloaded since the last call, and all of them.
    """

    device: str
    io: IoMode
    allow_nonfinite: bool
    command: Sequence[str] | None
    progress: Progress
    download_progress: DownloadProgress


class TensorOptions(TypedDict, total=False):
    """What can be said beside a recipe.

    Keys:
        dtype: of merged tensors: auto (the recipe's, or else each tensor's in the first model),
            float32, float16 or bfloat16.
        skip: globs of tensor names to leave out.
        keep: globs of tensor names to take from the first model that has them.
        rows: where vocabularies were padded to different sizes: "min" for the rows that all models
            have, "max" for all rows, "base" for as many as the base model has, or the first.
        side_files_from: the model whose config and tokenizer are copied; by default the base model,
            or the first.
    """

    dtype: str
    skip: Sequence[str]
    keep: Sequence[str]
    rows: str | None
    side_files_from: Reference | None


class MergePlanOptions(TensorOptions, PlanOptions, total=False):
    """The options of a merge, besides the recipe, that its plan depends on."""


class MergeOptions(MergePlanOptions, RunOptions, total=False):
    """All options of a merge besides the recipe."""


class RecipeOptions(TensorOptions, total=False):
    """What an average can be asked for without a recipe file.

    Keys:
        weights: one for each model, in order, in any proportion; decimals count as written.
        schedule: coefficients for checkpoints of a training run, oldest first, e.g. "ema:0.2".
        last, every, steps: which checkpoints of the run; see `recipe.Selection`.
    """

    weights: Sequence[float | str] | None
    schedule: str | None
    last: int | None
    every: int | None
    steps: str | None


class AveragePlanOptions(RecipeOptions, PlanOptions, total=False):
    """The options of an average that its plan depends on."""


class AverageOptions(RecipeOptions, MergeOptions, total=False):
    """All options of an average."""
