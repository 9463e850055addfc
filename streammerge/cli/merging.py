"""The commands that merge: average, plan, merge. They import what they work with as they run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streammerge.cli import options as o
from streammerge.cli.endings import errors_for_people
from streammerge.cli.groups import Average, Machine, Plan, Print, Run, Tensors, takes
from streammerge.cli.progress import ProgressBar
from streammerge.cli.startup import load_pipeline_beside, load_torch_beside

if TYPE_CHECKING:
    from streammerge.options import PlanOptions, RecipeOptions, TensorOptions
    from streammerge.recipe import Recipe


@takes(Average, Tensors, Plan, Machine, Run, Print)
def average(models: o.Models, output: o.Out, **options: Any) -> None:
    """Average two or more checkpoints of the same architecture, with weights or without."""
    with errors_for_people():
        _carry_out(lambda: _average_recipe(models, options), output, options)


@takes(Average, Tensors, Plan, Machine, Print)
def plan(models: o.Models, output: o.Out, **options: Any) -> None:
    """Print what `average` with the same arguments would do, from headers alone."""
    with errors_for_people():
        recipe = _average_recipe(models, options)
        _carry_out(lambda: recipe, output, {**options, "dry_run": True})


@takes(Tensors, Plan, Machine, Run, Print)
def merge(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE.yml", help="A recipe: see docs/recipes.md.")
    ],
    output: o.Out,
    **options: Any,
) -> None:
    """Merge checkpoints by any method, as a recipe says; mergekit's recipes run as they are."""
    with errors_for_people():
        from streammerge import api

        _carry_out(lambda: api.read_recipe(recipe, _tensor_options(options)), output, options)


def _average_recipe(models: list[str], options: dict[str, Any]) -> Recipe:
    from streammerge import api

    given: RecipeOptions = {
        **_tensor_options(options),
        "weights": options["weight"],
        "schedule": options["schedule"],
        "last": options["last"],
        "every": options["every"],
        "steps": options["steps"],
    }
    return api.recipe_of(models, given)


def _tensor_options(options: dict[str, Any]) -> TensorOptions:
    return {
        "dtype": options["dtype"].value,
        "skip": options["skip"] or (),
        "keep": options["keep"] or (),
        "rows": options["rows"].value if options["rows"] else None,
        "side_files_from": options["side_files_from"],
    }


def _carry_out(read: Callable[[], Recipe], output: str, options: dict[str, Any]) -> None:
    """Plan a recipe and print the plan; unless it is a dry run, merge and print the result."""
    from streammerge import api
    from streammerge.cli import show
    from streammerge.forecast import forecast

    json, verbose, dry_run = options["json"], options["verbose"], options["dry_run"]
    if not dry_run:
        load_pipeline_beside()
    prepared = api.prepare(read(), output, **_plan_options(options))
    io, device, quiet = options["io"].value, options["device"], options.get("quiet", False)
    facts = forecast(prepared.plan, prepared.checkpoints, io, device)
    if dry_run:
        show.plan_as_json(prepared, facts) if json else show.plan(prepared, facts, verbose)
        return
    load_torch_beside(prepared.plan, device)
    if not quiet:
        show.plan(prepared, facts, verbose, to_stderr=True)
    sent = prepared.output.bytes_to_send(prepared.plan)
    total = facts.bytes_read + facts.bytes_written + sent
    with ProgressBar(total, enabled=not quiet) as bar:
        result = api.execute(
            prepared,
            device=device,
            io=io,
            allow_nonfinite=options["allow_nonfinite"],
            command=["streammerge", *o.without_token(sys.argv[1:])],
            progress=lambda nbytes: bar.stage("merging", nbytes, total),
            download_progress=lambda nbytes, size: bar.stage("downloading", nbytes, size),
        )
    show.result_as_json(result) if json else show.result(result, facts, prepared.plan.notes)


def _plan_options(options: dict[str, Any]) -> PlanOptions:
    return {
        "memory": options["memory"],
        "max_shard_size": options["max_shard_size"],
        "overwrite": options["overwrite"],
        "strict": options["strict"],
        "download": options["download"].value,
        "push_to_hub": options["push_to_hub"],
        "private": options["private"],
        "branch": options["branch"],
        "create_pr": options["create_pr"],
        "token": options["token"],
    }
