"""The whole way of a merge, to be read first: open → plan → execute → publish."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Unpack, get_args

from streammerge.budget import make_layout
from streammerge.checkpoint import HubAccess, open_checkpoint
from streammerge.downloads import DownloadProgress, check_space, fetch, needed_downloads
from streammerge.errors import RecipeError
from streammerge.forecast import bytes_to_read
from streammerge.inputs import open_inputs
from streammerge.jobs import (
    AverageOptions,
    JobOptions,
    MergeOptions,
    PlanOptions,
    Prepared,
    Progress,
    Reference,
    Result,
    RunOptions,
)
from streammerge.outputs.targets import HubOptions, open_output
from streammerge.plan import Plan
from streammerge.planning import make_plan
from streammerge.recipe import Recipe, Selection, average_recipe, load_recipe
from streammerge.relatives import check_relatives
from streammerge.storage import DownloadMode, IoMode
from streammerge.tensors import parse_size


def prepare(
    recipe: Recipe,
    out: Reference,
    *,
    memory: str | int | None = None,
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
    strict: bool = False,
    download: DownloadMode = "cache",
    token: str | None = None,
    **hub: Unpack[HubOptions],
) -> Prepared:
    """Open the inputs, plan their merge and check that it can be carried out; see `merge`."""
    budget = None if memory is None else parse_size(memory)
    shard_size = parse_size(max_shard_size)
    access = HubAccess(download, token)
    checkpoints = open_inputs(recipe, lambda reference: open_checkpoint(reference, access))
    output = open_output(out, recipe.references, overwrite, token, **hub)
    output.check()
    plan = make_plan(recipe, checkpoints, shard_size)
    streaming = download == "stream" and any(c.pinned for c in checkpoints)
    layout = make_layout(plan, checkpoints, budget, streaming)
    output.check_space(plan)
    check_space(needed_downloads(plan, checkpoints), *output.space(plan))
    notes = (*plan.notes, *check_relatives(plan, checkpoints, strict))
    plan = plan.model_copy(update={"notes": notes})
    return Prepared(plan, checkpoints, layout, output)


def prepare_average(
    models: Sequence[Reference],
    out: Reference,
    *,
    weights: Sequence[float] | None = None,
    schedule: str | None = None,
    last: int | None = None,
    every: int | None = None,
    steps: str | None = None,
    dtype: str = "auto",
    skip: Sequence[str] = (),
    keep: Sequence[str] = (),
    side_files_from: Reference | None = None,
    **job: Unpack[JobOptions],
) -> Prepared:
    """Prepare an average; see `average`."""
    recipe = average_recipe(
        [os.fspath(model) for model in models],
        weights,
        dtype,
        skip,
        keep,
        os.fspath(side_files_from) if side_files_from is not None else None,
        schedule,
        Selection(steps, every, last),
    )
    return prepare(recipe, out, **job)


def prepare_merge(
    recipe: Reference | Recipe,
    out: Reference,
    *,
    dtype: str = "auto",
    skip: Sequence[str] = (),
    keep: Sequence[str] = (),
    side_files_from: Reference | None = None,
    **job: Unpack[JobOptions],
) -> Prepared:
    """Read a recipe and prepare it; see `merge`."""
    asked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    changes: dict[str, Any] = {}
    if dtype != "auto":
        changes["out_dtype"] = dtype
    if skip or keep:
        changes |= {"skip": (*asked.skip, *skip), "keep": (*asked.keep, *keep)}
    if side_files_from is not None:
        changes["side_files_from"] = os.fspath(side_files_from)
    return prepare(asked.changed(**changes) if changes else asked, out, **job)


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
    """Carry out a prepared merge and publish its output; see `merge`."""
    from streammerge.execute import Pipeline  # torch is loaded here and not before
    from streammerge.lanes import choose_device
    from streammerge.outputs.documents import make_documents

    if io not in get_args(IoMode):
        raise RecipeError(f"io {io!r} is not known", "Choose auto, direct, mmap or buffered.")
    plan, output = prepared.plan, prepared.output
    chosen = choose_device("cpu" if device == "auto" else device)
    output.progress = progress
    try:
        kept = output.begin(plan)
        needed = needed_downloads(plan, prepared.checkpoints, {shard.file for shard in kept})
        told = fetch(needed, download_progress)
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


def plan_average(
    models: Sequence[Reference], out: Reference, **options: Unpack[PlanOptions]
) -> Plan:
    """Return the plan of an average without writing anything; options as in `average`."""
    return prepare_average(models, out, **options).plan


def average(
    models: Sequence[Reference], out: Reference, **options: Unpack[AverageOptions]
) -> Result:
    """Write the weighted average of checkpoints of one architecture to a folder, or to the Hub.

    Args:
        models: folders with safetensors weights, .safetensors files, or org/name[@revision] on
            the Hub; two or more. With a schedule or a choice of checkpoints also patterns such as
            "run/checkpoint-*"; they are then put in order by step.
        out: the folder to write, made if missing; or hf://namespace/name[@branch] on the Hub.
        options: those of `merge`, and:

            weights: one for each model, in order, in any proportion; decimals count as written.
            schedule: coefficients of checkpoints of a run, such as "ema:0.2"; see `schedules`.
            last, every, steps: which of the checkpoints to take; see `recipe.Selection`.

    Raises:
        StreammergeError: with what is wrong, where, and what to do; nothing is left in `out`.
    """
    planned, run = _split(options, RunOptions)
    return execute(prepare_average(models, out, **planned), **run)


def merge(recipe: Reference | Recipe, out: Reference, **options: Unpack[MergeOptions]) -> Result:
    """Carry out a recipe, and write the result to a folder or to the Hub.

    Args:
        recipe: a YAML file (docs/recipes.md), or what `load_recipe` makes of one.
        out: the folder to write, made if missing; or hf://namespace/name[@branch] on the Hub.
        options: of these, by keyword:

            dtype: of merged tensors instead of the recipe's: float32, float16 or bfloat16; auto
                for the recipe's, or each tensor's in the first model.
            skip: globs of tensor names to leave out, besides the recipe's.
            keep: globs of tensor names to take from the first input that has them, likewise.
            side_files_from: the model whose config and tokenizer are copied; by default the
                recipe's, else the base model, else the first.
            memory: bound on the process's anonymous memory, e.g. "1GiB" or bytes.
            max_shard_size: bytes of an output shard, e.g. "5GB".
            device: auto, cpu, cuda, cuda:<i> or mps.
            overwrite: replace a checkpoint that is in `out` already.
            strict: refuse models that look unrelated, which is only a note otherwise.
            io: how inputs are read: auto, direct, mmap or buffered.
            allow_nonfinite: pass NaN and Inf on instead of refusing them.
            download: weights on the Hub go through the "cache" of its client, or "stream"
                unstored.
            token: for the Hub; the one that is logged in by default.
            progress: called with the bytes read, written and sent since the last call.
            download_progress: called with the bytes downloaded since the last call, and all.
            push_to_hub, private, branch, create_pr: how the result gets to the Hub; see
                `outputs.targets.HubOptions`.

    Raises:
        StreammergeError: with what is wrong, where, and what to do; nothing is left in `out`.
    """
    planned, run = _split(options, RunOptions)
    return execute(prepare_merge(recipe, out, **planned), **run)


def _split(options: Any, kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that are not of a kind, and those that are."""
    chosen = kind.__optional_keys__ & options.keys()
    rest = {key: value for key, value in options.items() if key not in chosen}
    return rest, {key: options[key] for key in chosen}
