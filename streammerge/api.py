"""The whole way of a merge, to be read first: open → plan → execute → publish."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack, cast

from streammerge.budget import Layout, make_layout
from streammerge.checkpoint import Checkpoint, HubAccess, open_checkpoint
from streammerge.downloads import check_space, fetch, needed_downloads
from streammerge.errors import RecipeError
from streammerge.extensions import load_plugins
from streammerge.forecast import bytes_to_read
from streammerge.inputs import open_inputs
from streammerge.options import (
    AverageOptions,
    AveragePlanOptions,
    MergeOptions,
    MergePlanOptions,
    PlanOptions,
    RecipeOptions,
    Reference,
    RunOptions,
    TensorOptions,
)
from streammerge.outputs import Target, count_nonfinite
from streammerge.outputs.targets import HubOptions, open_output
from streammerge.plan import Plan
from streammerge.planning import make_plan
from streammerge.recipe import Recipe, Selection, average_recipe, load_recipe
from streammerge.relatives import check_relatives
from streammerge.report import Result
from streammerge.tensors import parse_size


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that is planned and checked, with nothing written yet."""

    plan: Plan
    checkpoints: list[Checkpoint]
    layout: Layout
    output: Target


def prepare(recipe: Recipe, out: Reference, **options: Unpack[PlanOptions]) -> Prepared:
    """Open the inputs, plan the merge and check that it can be carried out; nothing is written.

    Raises:
        StreammergeError: with what is wrong, where, and what to do.
    """
    memory, token = options.get("memory"), options.get("token")
    budget = None if memory is None else parse_size(memory)
    size = options.get("max_shard_size")
    max_shard_size = None if size is None else parse_size(size)
    access = HubAccess(options.get("download", "cache"), token)
    load_plugins(recipe.all_plugins)
    checkpoints = open_inputs(recipe, lambda reference: open_checkpoint(reference, access))
    hub = cast(HubOptions, {k: v for k, v in options.items() if k in HubOptions.__optional_keys__})
    output = open_output(out, recipe.references, options.get("overwrite", False), token, **hub)
    output.check()
    plan = make_plan(recipe, checkpoints, max_shard_size)
    layout = make_layout(plan, checkpoints, budget)
    output.check_space(plan)
    check_space(needed_downloads(plan, checkpoints), *output.space(plan))
    notes = (*plan.notes, *check_relatives(plan, checkpoints, options.get("strict", False)))
    return Prepared(plan.model_copy(update={"notes": notes}), checkpoints, layout, output)


def _no_progress(nbytes: int, total: int = 0) -> None:
    """Tell nobody."""


def execute(prepared: Prepared, **options: Unpack[RunOptions]) -> Result:
    """Carry out a prepared merge and publish its output.

    Raises:
        StreammergeError: with what is wrong, where, and what to do; nothing is left in the output
            but finished shards, which the next run of the same merge goes on after.
    """
    from streammerge.execute import Pipeline  # not needed to plan
    from streammerge.lanes import choose_device

    plan, output = prepared.plan, prepared.output
    device, io = options.get("device", "auto"), options.get("io", "auto")
    if io not in ("auto", "direct", "mmap", "buffered"):
        raise RecipeError(f"io {io!r} is not known", "Choose auto, direct, mmap or buffered.")
    chosen = choose_device("cpu" if device == "auto" else device)
    progress = options.get("progress", _no_progress)
    output.progress = progress
    try:
        allowed = options.get("allow_nonfinite", False)
        # A run that let NaN pass does not decide for one that refuses it.
        kept = [s for s in output.begin(plan) if allowed or not (s.nonfinite or s.nonfinite_inputs)]
        needed = needed_downloads(plan, prepared.checkpoints, {shard.file for shard in kept})
        tell = options.get("download_progress", _no_progress)
        told = fetch(needed, prepared.layout.downloads, tell)
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
            allow_nonfinite=allowed,
            progress=progress,
        ).run()
        from streammerge.outputs.documents import make_documents  # not needed to begin reading

        documents, last = make_documents(
            plan,
            prepared.checkpoints,
            report.shards,
            options.get("command") or plan.recipe.command(output.label),
        )
        output.publish(documents, last)
    except BaseException as error:
        if output.abandon():
            error.add_note("The finished shards are kept: the same command goes on after them.")
        raise
    nonfinite, nonfinite_inputs = count_nonfinite(report.shards)
    return Result(
        out=output.place,
        shards=report.shards,
        parameters=plan.parameters,
        notes=[*plan.notes, *told],
        nonfinite=nonfinite,
        nonfinite_inputs=nonfinite_inputs,
        read_modes=dict(Counter(report.read_modes.values())),
        kept=len(kept),
        seconds=report.seconds,
        fingerprint=plan.fingerprint(),
        pushed=output.pushed,
    )


def merge(recipe: Recipe | Reference, out: Reference, **options: Unpack[MergeOptions]) -> Result:
    """Write the merge that a recipe asks for to a folder, or to the Hub.

    Args:
        recipe: a recipe, or the path of its YAML file.
        out: the folder to write, made if missing; or hf://namespace/name[@branch] on the Hub.
        options: see `options.MergeOptions`.

    Raises:
        StreammergeError: with what is wrong, where, and what to do.
    """
    for_plan, for_run = _split(options)
    return execute(prepare(read_recipe(recipe, options), out, **for_plan), **for_run)


def plan_merge(
    recipe: Recipe | Reference, out: Reference, **options: Unpack[MergePlanOptions]
) -> Plan:
    """Return the plan of a merge without writing anything; as `merge`."""
    return prepare(read_recipe(recipe, options), out, **_split(options)[0]).plan


def read_recipe(
    recipe: Recipe | Reference, options: TensorOptions | MergePlanOptions | MergeOptions
) -> Recipe:
    """Return a recipe, read if need be, with what the options say instead."""
    asked = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    changes: dict[str, object] = {}
    if options.get("dtype", "auto") != "auto":
        changes["out_dtype"] = options["dtype"]
    for key, own in (("skip", asked.skip), ("keep", asked.keep)):
        if options.get(key):
            changes[key] = (*own, *options[key])  # type: ignore[literal-required]
    if options.get("rows") is not None:
        changes["rows"] = options["rows"]
    if (donor := options.get("side_files_from")) is not None:
        changes["side_files_from"] = os.fspath(donor)
    return asked.changed(**changes) if changes else asked


def average(
    models: Sequence[Reference], out: Reference, **options: Unpack[AverageOptions]
) -> Result:
    """Write the weighted average of checkpoints of one architecture to a folder, or to the Hub.

    Args:
        models: two or more; see `options.Reference`.
        out: the folder to write, made if missing; or hf://namespace/name[@branch] on the Hub.
        options: see `options.RecipeOptions` and `options.MergeOptions`.

    Raises:
        StreammergeError: with what is wrong, where, and what to do.
    """
    recipe = recipe_of(models, options)
    for_plan, for_run = _split(options)
    return execute(prepare(recipe, out, **for_plan), **for_run)


def plan_average(
    models: Sequence[Reference], out: Reference, **options: Unpack[AveragePlanOptions]
) -> Plan:
    """Return the plan of an average without writing anything; as `average`."""
    return prepare(recipe_of(models, options), out, **_split(options)[0]).plan


def recipe_of(
    models: Sequence[Reference], options: RecipeOptions | AveragePlanOptions | AverageOptions
) -> Recipe:
    """Return the recipe that an average's options stand for."""
    donor = options.get("side_files_from")
    return average_recipe(
        [os.fspath(model) for model in models],
        options.get("weights"),
        options.get("dtype", "auto"),
        options.get("skip", ()),
        options.get("keep", ()),
        os.fspath(donor) if donor is not None else None,
        options.get("schedule"),
        Selection(options.get("steps"), options.get("every"), options.get("last")),
        options.get("rows"),
    )


def _split(
    options: MergeOptions | MergePlanOptions | AveragePlanOptions | AverageOptions,
) -> tuple[PlanOptions, RunOptions]:
    """Return the options that the plan depends on, and those of the run.

    Raises:
        TypeError: an option that does not exist.
    """
    known = AverageOptions.__optional_keys__
    for name in options:
        if name not in known:
            raise TypeError(f"there is no option {name!r}; known: {', '.join(sorted(known))}")
    for_plan = {k: v for k, v in options.items() if k in PlanOptions.__optional_keys__}
    for_run = {k: v for k, v in options.items() if k in RunOptions.__optional_keys__}
    return cast(PlanOptions, for_plan), cast(RunOptions, for_run)
