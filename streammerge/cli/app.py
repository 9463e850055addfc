"""The commands and their options.

Results go to stdout, all else to stderr. Exit status: 0 done, 1 refused or failed, 2 wrong usage,
130 interrupted. What a command works with is imported when it runs: help answers without.
"""

from __future__ import annotations

from typing import Annotated

import typer

from streammerge.cli import merging
from streammerge.cli import options as o
from streammerge.cli.endings import errors_for_people
from streammerge.cli.progress import ProgressBar
from streammerge.cli.startup import load_pipeline_beside

app = typer.Typer(
    name="streammerge",
    help="Merge checkpoints of any size, at the speed of the disk, in the memory you allow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


for _command in (merging.average, merging.plan, merging.merge):
    app.command()(_command)


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint, here or on the Hub.")
    ],
    token: o.Token = None,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Print the tensors, dtypes, shards, parameters and bytes of a checkpoint."""
    with errors_for_people():
        from streammerge.checkpoint import HubAccess, open_checkpoint
        from streammerge.cli import show_checkpoint

        checkpoint = open_checkpoint(model, HubAccess(token=token))
        if json:
            show_checkpoint.checkpoint_as_json(checkpoint)
        else:
            show_checkpoint.checkpoint(checkpoint, verbose)


@app.command()
def verify(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder that streammerge wrote.")],
    recompute: o.Recompute = None,
    load: o.Load = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Check every byte of an output, and that it is one checkpoint, all of it and nothing else."""
    with errors_for_people(interrupted="the output was not checked to its end"):
        from streammerge import verifying
        from streammerge.cli import show_verify

        if recompute:
            load_pipeline_beside()
        with ProgressBar(0, enabled=not quiet, stage="checking") as progress:
            done = verifying.verify(
                out,
                recompute="all" if recompute == "all" else int(recompute) if recompute else None,
                load=load,
                progress=progress.stage,
            )
        show_verify.verification_as_json(done) if json else show_verify.verification(done)
        if done.findings:
            raise typer.Exit(1)


@app.command()
def push(
    out: Annotated[str, typer.Argument(metavar="OUT", help="A folder that streammerge wrote.")],
    repo: Annotated[
        str, typer.Argument(metavar="NAMESPACE/NAME", help="A repository; made if missing.")
    ],
    private: o.Private = False,
    branch: o.Branch = None,
    create_pr: o.CreatePr = False,
    token: o.Token = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte and compare its sha256 first.")
    ] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Push an output to the Hub, in one commit, sending only what is not there yet."""
    with errors_for_people(interrupted="nothing was committed"):
        from streammerge import pushing
        from streammerge.cli import show

        with ProgressBar(0, enabled=not quiet, stage="checking") as progress:
            pushed = pushing.push(
                out,
                repo,
                private=private,
                branch=branch,
                create_pr=create_pr,
                token=token,
                verify=verify,
                progress=progress.stage,
            )
        show.pushed_as_json(pushed) if json else show.pushed(pushed)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="The method to explain.")
    ] = None,
    json: o.Json = False,
) -> None:
    """List the merge methods, or explain one."""
    with errors_for_people():
        from streammerge.cli import show_methods
        from streammerge.extensions import find_method, load_entry_points
        from streammerge.methods import METHODS

        found = find_method(name) if name is not None else None
        if found is None:
            load_entry_points()
        if json:
            show_methods.methods_as_json([found.name] if found else list(METHODS))
        elif found is not None:
            show_methods.method(found)
        else:
            show_methods.methods()


def _version(value: bool) -> None:
    if value:
        from streammerge.version import __version__

        typer.echo(f"streammerge {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Merge checkpoints of any size, at the speed of the disk, in the memory you allow."""
