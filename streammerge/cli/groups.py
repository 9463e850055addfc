"""The options of the commands that merge, in groups, so that each is declared once.

A command takes its groups as keyword arguments: `@takes(Output, Run)` writes their options into the
signature that typer reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from streammerge.cli import options as o

_F = TypeVar("_F", bound=Callable[..., Any])


class Average:
    """What to average, and how."""

    weight: o.Weight = None
    schedule: o.Schedule = None
    last: o.Last = None
    every: o.Every = None
    steps: o.Steps = None


class Tensors:
    """What the output's tensors are."""

    dtype: o.DtypeOption = o.Dtype.auto
    skip: o.Skip = None
    keep: o.Keep = None
    rows: o.RowsOption = None
    side_files_from: o.SideFilesFrom = None


class Plan:
    """Where the output goes, and within what bounds."""

    memory: o.Memory = None
    max_shard_size: o.MaxShardSize = None
    overwrite: o.Overwrite = False
    strict: o.Strict = False
    download: o.DownloadOption = o.Download.cache
    push_to_hub: o.PushToHub = None
    private: o.Private = False
    branch: o.Branch = None
    create_pr: o.CreatePr = False
    token: o.Token = None


class Machine:
    """How the work is done."""

    device: o.Device = "auto"
    io: o.IoOption = o.Io.auto


class Run:
    """Whether and how it is carried out."""

    allow_nonfinite: o.AllowNonfinite = False
    dry_run: o.DryRun = False
    quiet: o.Quiet = False


class Print:
    """What is printed."""

    json: o.Json = False
    verbose: o.Verbose = False


def takes(*groups: type) -> Callable[[_F], _F]:
    """Give a command, whose last parameter is `**options`, the options of groups."""

    def decorate(command: _F) -> _F:
        own = inspect.signature(command, eval_str=True).parameters.values()
        fixed = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=getattr(group, name),
                annotation=hint,
            )
            for group in groups
            for name, hint in get_type_hints(group, include_extras=True).items()
        ]
        signature = inspect.Signature([*fixed, *added])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorate
