"""The whole way of a merge, to be read first: open → plan → execute → publish."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from streammerge.budget import Layout, make_layout
from streammerge.checkpoint import Checkpoint, HubAccess, open_checkpoint
from streammerge.downloads import DownloadProgress, check_space, fetch, needed_downloads
from streammerge.errors import RecipeError
from streammerge.forecast import bytes_to_read
from streammerge.outputs import Pushed, Target, WrittenShard
from streammerge.outputs.targets import HubOptions, open_output
from streammerge.plan import Plan, make_plan
from streammerge.recipe import average_recipe
from streammerge.storage import DownloadMode, IoMode
from streammerge.tensors import parse_size

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


def prepare_average(
    models: Sequence[Reference],
    out: Reference,
    *,
    weights: Sequence[float] | None = None,
    dtype: str = "auto",
    memory: str | int | None = None,
    max_shard_size: str | int = "5GB",
    skip: Sequence[str] = (),
    keep: Sequence[str] = (),
    side_files_from: Reference | None = None,
    overwrite: bool = False,
    download: DownloadMode = "cache",
    token: str | None = None,
    **hub: Unpack[HubOptions],
) -> Prepared:
    """Open the inputs, plan their average and check that it can be carried out; see `average`."""
    recipe = average_recipe(
        [os.fspath(model) for model in models],
        weights,
        dtype,
        skip,
        keep,
        os.fspath(side_files_from) if side_files_from is not None else None,
    )
    budget = None if memory is None else parse_size(memory)
    shard_size = parse_size(max_shard_size)
    access = HubAccess(download, token)
    checkpoints = [open_checkpoint(model, access) for model in recipe.models]
    output = open_output(out, recipe.models, overwrite, token, **hub)
    output.check()
    plan = make_plan(recipe, checkpoints, shard_size)
    dtypes = [{t.name: t.dtype for t in c.tensors.values()} for c in checkpoints]
    layout = make_layout(plan, dtypes, budget, any(c.pinned for c in checkpoints))
    output.check_space(plan)
    check_space(needed_downloads(plan, checkpoints), *output.space(plan))
    return Prepared(plan, checkpoints, layout, output)


def execute(
    prepared: Prepared,
    *,
    device: str = "auto",
    io: IoMode = "auto",
    allow_nonfinite: bool = False,
    command: Sequence[str] | None = None,
    progress: Progress = lambda nbytes: None,
    download_progress: DownloadProgress = lambda nbytes, total: None,
) -> Result:
    """Carry out a prepared merge and publish its output; see `average`."""
    from streammerge.execute import Pipeline  # torch is loaded here and not before
    from streammerge.lanes import choose_device
    from streammerge.outputs.documents import make_documents

    plan, output = prepared.plan, prepared.output
    chosen = choose_device("cpu" if device == "auto" else device)
    output.progress = progress
    try:
        kept = output.begin(plan)
        needed = needed_downloads(plan, prepared.checkpoints, {shard.file for shard in kept})
        told = fetch(needed, prepared.layout.downloads, download_progress)
        for shard in kept:
            progress(shard.bytes + bytes_to_read(plan, prepared.checkpoints, shard.file))
        report = Pipeline(
            plan,
            prepared.checkpoints,
            prepared.layout,
            output,
            kept,
            io=io,
            device=chosen,
            allow_nonfinite=allow_nonfinite,
            progress=progress,
        ).run()
        documents, last = make_documents(
            plan,
            prepared.checkpoints,
            report.shards,
            report.nonfinite,
            command or plan.recipe.command(output.label),
        )
        output.publish(documents, last)
    except BaseException as error:
        if output.abandon():
            error.add_note("The finished shards are kept: the same command goes on after them.")
        raise
    return Result(
        out=output.place,
        shards=report.shards,
        parameters=plan.parameters,
        notes=[*plan.notes, *told],
        nonfinite=dict(report.nonfinite),
        read_modes=dict(report.read_modes),
        kept=len(kept),
        seconds=report.seconds,
        fingerprint=plan.fingerprint(),
        pushed=output.pushed,
    )


class PlanOptions(HubOptions, total=False):
    """The options of `average` that a plan depends on."""

    weights: Sequence[float] | None
    dtype: str
    memory: str | int | None
    max_shard_size: str | int
    skip: Sequence[str]
    keep: Sequence[str]
    side_files_from: Reference | None
    overwrite: bool
    download: DownloadMode
    token: str | None


def plan_average(
    models: Sequence[Reference], out: Reference, **options: Unpack[PlanOptions]
) -> Plan:
    """Return the plan of an average without writing anything; options as in `average`."""
    return prepare_average(models, out, **options).plan


def average(
    models: Sequence[Reference],
    out: Reference,
    *,
    weights: Sequence[float] | None = None,
    dtype: str = "auto",
    memory: str | int | None = None,
    max_shard_size: str | int = "5GB",
    device: str = "auto",
    skip: Sequence[str] = (),
    keep: Sequence[str] = (),
    side_files_from: Reference | None = None,
    overwrite: bool = False,
    io: IoMode = "auto",
    allow_nonfinite: bool = False,
    download: DownloadMode = "cache",
    token: str | None = None,
    progress: Progress = lambda nbytes: None,
    download_progress: DownloadProgress = lambda nbytes, total: None,
    **hub: Unpack[HubOptions],
) -> Result:
    """Write the weighted average of checkpoints of one architecture to a folder, or to the Hub.

    Args:
        models: folders with safetensors weights, .safetensors files, or org/name[@revision] on
            the Hub; two or more.
        out: the folder to write, made if missing; or hf://namespace/name[@branch] on the Hub.
        weights: one for each model, in order, in any proportion; decimals count as written.
        dtype: auto (each tensor keeps the first model's), float32, float16 or bfloat16.
        memory: bound on the process's anonymous memory, e.g. "1GiB" or bytes.
        max_shard_size: bytes of an output shard, e.g. "5GB".
        device: auto, cpu, cuda, cuda:<i> or mps.
        skip: globs of tensor names to leave out.
        keep: globs of tensor names to take from the first model that has them.
        side_files_from: the model whose config and tokenizer are copied; the first by default.
        overwrite: replace a checkpoint that is in `out` already.
        io: how inputs are read: auto, direct, mmap or buffered.
        allow_nonfinite: pass NaN and Inf on instead of refusing them.
        download: weights on the Hub go through the "cache" of its client, or "stream" unstored.
        token: for the Hub; the one that is logged in by default.
        progress: called with the bytes read, written and sent since the last call.
        download_progress: called with the bytes downloaded since the last call, and all of them.
        hub: how the result gets to the Hub; see `outputs.targets.HubOptions`.

    Raises:
        StreammergeError: with what is wrong, where, and what to do; nothing is left in `out`.
    """
    prepared = prepare_average(
        models,
        out,
        weights=weights,
        dtype=dtype,
        memory=memory,
        max_shard_size=max_shard_size,
        skip=skip,
        keep=keep,
        side_files_from=side_files_from,
        overwrite=overwrite,
        download=download,
        token=token,
        **hub,
    )
    if io not in ("auto", "direct", "mmap", "buffered"):
        raise RecipeError(f"io {io!r} is not known", "Choose auto, direct, mmap or buffered.")
    return execute(
        prepared,
        device=device,
        io=io,
        allow_nonfinite=allow_nonfinite,
        progress=progress,
        download_progress=download_progress,
    )
