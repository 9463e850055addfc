"""The commands and their options.

Results go to stdout, all else to stderr. Exit status: 0 done, 1 refused or failed, 2 wrong usage,
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from streammerge import api
from streammerge.checkpoint import open_checkpoint
from streammerge.cli import show
from streammerge.cli.progress import ProgressBar
from streammerge.errors import StreammergeError
from streammerge.version import __version__

app = typer.Typer(
    name="streammerge",
    help="Merge checkpoints of any size, at the speed of the disk, in the memory you allow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """Choices of --dtype."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Io(StrEnum):
    """Choices of --io."""

    auto = "auto"
    direct = "direct"
    mmap = "mmap"
    buffered = "buffered"


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL MODEL…",
        help="Folders with safetensors weights, or paths of .safetensors files.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.", show_default=False)
]
Weight = Annotated[
    list[float] | None,
    typer.Option(
        "--weight",
        "-w",
        help="Weight of a model, once for each, in order and in any proportion. Default: equal.",
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", help="Dtype of merged tensors; auto: each keeps the first model's."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Bound on the process's own memory, e.g. 512MiB. Default: enough for full speed.",
        show_default=False,
    ),
]
MaxShardSize = Annotated[
    str, typer.Option("--max-shard-size", metavar="SIZE", help="Size of an output shard.")
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:<i> or mps.")
]
IoOption = Annotated[
    Io, typer.Option("--io", help="How inputs are read; auto: by what lies in the page cache.")
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="GLOB", help="Leave tensors out (repeatable)."),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="GLOB",
        help="Take tensors from the first model that has them (repeatable).",
    ),
]
SideFilesFrom = Annotated[
    str | None,
    typer.Option(
        "--side-files-from",
        metavar="MODEL",
        help="The model whose config and tokenizer are copied. Default: the first.",
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the checkpoint that is in OUT.")
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Pass NaN and Inf on instead of refusing them.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every tensor.")]


@app.command()
def average(
    models: Models,
    output: Out,
    weight: Weight = None,
    dtype: DtypeOption = Dtype.auto,
    memory: Memory = None,
    max_shard_size: MaxShardSize = "5GB",
    device: Device = "auto",
    io: IoOption = Io.auto,
    skip: Skip = None,
    keep: Keep = None,
    side_files_from: SideFilesFrom = None,
    overwrite: Overwrite = False,
    allow_nonfinite: AllowNonfinite = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Average two or more checkpoints of the same architecture, with weights or without."""
    with errors_for_people():
        if not dry_run:
            api.preload()
        prepared = api.prepare_average(
            models,
            output,
            weights=weight,
            dtype=dtype,
            memory=memory,
            max_shard_size=max_shard_size,
            skip=skip or (),
            keep=keep or (),
            side_files_from=side_files_from,
            overwrite=overwrite,
        )
        facts = api.describe(prepared, io=io.value, device=device)
        if dry_run:
            show.plan_as_json(prepared, facts) if json else show.plan(prepared, facts, verbose)
            return
        if not quiet:
            show.plan(prepared, facts, verbose, to_stderr=True)
        with ProgressBar(facts.bytes_written, enabled=not quiet) as progress:
            result = api.execute(
                prepared,
                device=device,
                io=io.value,
                allow_nonfinite=allow_nonfinite,
                command=["streammerge", *sys.argv[1:]],
                progress=progress,
            )
        show.result_as_json(result) if json else show.result(result, facts)


@app.command()
def plan(
    models: Models,
    output: Out,
    weight: Weight = None,
    dtype: DtypeOption = Dtype.auto,
    memory: Memory = None,
    max_shard_size: MaxShardSize = "5GB",
    device: Device = "auto",
    io: IoOption = Io.auto,
    skip: Skip = None,
    keep: Keep = None,
    side_files_from: SideFilesFrom = None,
    overwrite: Overwrite = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print what `average` with the same arguments would do, from headers alone."""
    average(
        models,
        output,
        weight,
        dtype,
        memory,
        max_shard_size,
        device,
        io,
        skip,
        keep,
        side_files_from,
        overwrite,
        dry_run=True,
        json=json,
        verbose=verbose,
    )


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint.")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print the tensors, dtypes, shards, parameters and bytes of a checkpoint."""
    with errors_for_people():
        checkpoint = open_checkpoint(model)
        show.checkpoint_as_json(checkpoint) if json else show.checkpoint(checkpoint, verbose)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"streammerge {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Merge checkpoints of any size, at the speed of the disk, in the memory you allow."""


@contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn what a user did wrong into a short message and an exit status."""
    try:
        yield
    except StreammergeError as error:
        show.error(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        show.interrupted()
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line."""
    app()
