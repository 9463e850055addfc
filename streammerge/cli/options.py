"""The options that the commands share: name, type and help, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Choices of --dtype."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Download(StrEnum):
    """Choices of --download."""

    cache = "cache"
    stream = "stream"


class Rows(StrEnum):
    """Choices of --rows."""

    min = "min"
    max = "max"
    base = "base"


class Io(StrEnum):
    """Choices of --io."""

    auto = "auto"
    direct = "direct"
    mmap = "mmap"
    buffered = "buffered"


def without_token(words: Sequence[str]) -> list[str]:
    """Return a command line without the secret in it: it goes into files that others will see."""
    kept: list[str] = []
    follows = False
    for word in words:
        if not follows and word != "--token" and not word.startswith("--token="):
            kept.append(word)
        follows = word == "--token" and not follows
    return kept


def _check_count(text: str | None) -> str | None:
    if text is None or text == "all" or (text.isdecimal() and int(text) > 0):
        return text
    raise typer.BadParameter("give a number of tensors from 1, or all")


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL MODEL…",
        help="Folders with safetensors weights, .safetensors files, or models on the Hub as "
        "org/name\\[@revision]\\[:subfolder].",
        show_default=False,
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        help="Folder to write, or hf://NAMESPACE/NAME[@BRANCH] on the Hub.",
        show_default=False,
    ),
]
DownloadOption = Annotated[
    Download,
    typer.Option(
        "--download",
        help="Weights on the Hub: cache keeps them in its client's cache, checked; stream reads "
        "them as they are merged, and stores nothing.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="For the Hub. Default: HF_TOKEN, or whoever has run `hf auth login`.",
        show_default=False,
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="NAMESPACE/NAME",
        help="Push OUT to this repository on the Hub when it is finished.",
        show_default=False,
    ),
]
Private = Annotated[
    bool, typer.Option("--private", help="Make the repository private, if it has to be made.")
]
Branch = Annotated[
    str | None,
    typer.Option(
        "--branch",
        metavar="NAME",
        help="Branch of the repository, made if missing. Default: main.",
        show_default=False,
    ),
]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Open a pull request instead of moving the branch.")
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
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="SPEC",
        help="Coefficients for checkpoints of a training run, oldest first: uniform, linear, "
        "ema:0.2, ema:half_life=3, wsm:cosine, explicit:1,2,3.",
        show_default=False,
    ),
]
Last = Annotated[
    int | None,
    typer.Option("--last", metavar="N", help="The newest N of the run.", show_default=False),
]
Every = Annotated[
    int | None,
    typer.Option(
        "--every", metavar="N", help="Every Nth, counted back from the newest.", show_default=False
    ),
]
Steps = Annotated[
    str | None,
    typer.Option(
        "--steps",
        metavar="FIRST:LAST[:STRIDE]",
        help="Checkpoints by step, e.g. 1000:5000:500.",
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
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        help="Largest output shard; by default 5GB, and two or more of them from 3GB on.",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:<i>.")
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
RowsOption = Annotated[
    Rows | None,
    typer.Option(
        "--rows",
        help="Where vocabularies were padded to different sizes: the rows that all models have, "
        "all rows, or as many as the base model (the first) has.",
        show_default=False,
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
