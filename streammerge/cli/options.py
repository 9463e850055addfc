"""The options that the commands share: name, type and help, each written once."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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


def _check_count(text: str | None) -> str | None:
    if text is None or text == "all" or (text.isdecimal() and int(text) > 0):
        return text
    raise typer.BadParameter("give a number of tensors from 1, or all")


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
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse models that look unrelated, instead of a note.")
]
AllowNonfinite = Annotated[
    bool, typer.Option("--allow-nonfinite", help="Pass NaN and Inf on instead of refusing them.")
]
Recompute = Annotated[
    str | None,
    typer.Option(
        "--recompute",
        metavar="N|all",
        help="Merge N tensors, or all, again from the inputs and compare them bit by bit.",
        show_default=False,
        callback=_check_count,
    ),
]
Load = Annotated[
    bool, typer.Option("--load", help="Have transformers load the structure, where installed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only, and the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every tensor.")]
