"""The commands that merge: average, plan, merge."""

from __future__ import annotations

import sys
from collections.abc import Callable

from streammerge import api
from streammerge.cli import options as o
from streammerge.cli import show
from streammerge.cli.endings import errors_for_people
from streammerge.cli.progress import ProgressBar
from streammerge.cli.startup import load_torch_beside
from streammerge.forecast import forecast
from streammerge.jobs import Prepared


def average(
    models: o.Models,
    output: o.Out,
    weight: o.Weight = None,
    schedule: o.Schedule = None,
    last: o.Last = None,
    every: o.Every = None,
    steps: o.Steps = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    memory: o.Memory = None,
    max_shard_size: o.MaxShardSize = "5GB",
    device: o.Device = "auto",
    io: o.IoOption = o.Io.auto,
    download: o.DownloadOption = o.Download.cache,
    skip: o.Skip = None,
    keep: o.Keep = None,
    side_files_from: o.SideFilesFrom = None,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    push_to_hub: o.PushToHub = None,
    private: o.Private = False,
    branch: o.Branch = None,
    create_pr: o.CreatePr = False,
    token: o.Token = None,
    allow_nonfinite: o.AllowNonfinite = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Average two or more checkpoints of the same architecture, with weights or without."""

    def prepare() -> Prepared:
        return api.prepare_average(
            models,
            output,
            weights=weight,
            schedule=schedule,
            last=last,
            every=every,
            steps=steps,
            dtype=dtype,
            memory=memory,
            max_shard_size=max_shard_size,
            skip=skip or (),
            keep=keep or (),
            side_files_from=side_files_from,
            overwrite=overwrite,
            strict=strict,
            download=download.value,
            push_to_hub=push_to_hub,
            private=private,
            branch=branch,
            create_pr=create_pr,
            token=token,
        )

    _carry_out(prepare, device, io, allow_nonfinite, dry_run, json, quiet, verbose)


def plan(
    models: o.Models,
    output: o.Out,
    weight: o.Weight = None,
    schedule: o.Schedule = None,
    last: o.Last = None,
    every: o.Every = None,
    steps: o.Steps = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    memory: o.Memory = None,
    max_shard_size: o.MaxShardSize = "5GB",
    device: o.Device = "auto",
    io: o.IoOption = o.Io.auto,
    download: o.DownloadOption = o.Download.cache,
    skip: o.Skip = None,
    keep: o.Keep = None,
    side_files_from: o.SideFilesFrom = None,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    push_to_hub: o.PushToHub = None,
    private: o.Private = False,
    branch: o.Branch = None,
    create_pr: o.CreatePr = False,
    token: o.Token = None,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Print what `average` with the same arguments would do, from headers alone."""
    average(**locals(), dry_run=True)


def merge(
    recipe: o.RecipeFile,
    output: o.Out,
    dtype: o.DtypeOption = o.Dtype.auto,
    memory: o.Memory = None,
    max_shard_size: o.MaxShardSize = "5GB",
    device: o.Device = "auto",
    io: o.IoOption = o.Io.auto,
    download: o.DownloadOption = o.Download.cache,
    skip: o.Skip = None,
    keep: o.Keep = None,
    side_files_from: o.SideFilesFrom = None,
    overwrite: o.Overwrite = False,
    strict: o.Strict = False,
    push_to_hub: o.PushToHub = None,
    private: o.Private = False,
    branch: o.Branch = None,
    create_pr: o.CreatePr = False,
    token: o.Token = None,
    allow_nonfinite: o.AllowNonfinite = False,
    dry_run: o.DryRun = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Carry out a recipe: a YAML file, mergekit's or one that says more (docs/recipes.md)."""

    def prepare() -> Prepared:
        return api.prepare_merge(
            recipe,
            output,
            dtype=dtype,
            memory=memory,
            max_shard_size=max_shard_size,
            skip=skip or (),
            keep=keep or (),
            side_files_from=side_files_from,
            overwrite=overwrite,
            strict=strict,
            download=download.value,
            push_to_hub=push_to_hub,
            private=private,
            branch=branch,
            create_pr=create_pr,
            token=token,
        )

    _carry_out(prepare, device, io, allow_nonfinite, dry_run, json, quiet, verbose)


def _carry_out(
    prepare: Callable[[], Prepared],
    device: str,
    io: o.Io,
    allow_nonfinite: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Print the plan; unless it is a dry run, execute it and print what came of it."""
    with errors_for_people():
        if not dry_run:
            load_torch_beside()
        prepared = prepare()
        facts = forecast(prepared.plan, prepared.checkpoints, io.value, device)
        if dry_run:
            show.plan_as_json(prepared, facts) if json else show.plan(prepared, facts, verbose)
            return
        if not quiet:
            show.plan(prepared, facts, verbose, to_stderr=True)
        sent = prepared.output.bytes_to_send(prepared.plan)
        total = facts.bytes_read + facts.bytes_written + sent
        with ProgressBar(total, enabled=not quiet) as bar:
            result = api.execute(
                prepared,
                device=device,
                io=io.value,
                allow_nonfinite=allow_nonfinite,
                command=["streammerge", *o.without_token(sys.argv[1:])],
                progress=lambda nbytes: bar.stage("merging", nbytes, total),
                download_progress=lambda nbytes, size: bar.stage("downloading", nbytes, size),
            )
        show.result_as_json(result) if json else show.result(result, facts, prepared.plan.notes)
