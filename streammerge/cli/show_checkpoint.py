"""What a checkpoint holds, as text or as JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.markup import escape

from streammerge.checkpoint import Checkpoint
from streammerge.cli.console import grid, open_console, print_json
from streammerge.errors import printable
from streammerge.tensors import format_size


def checkpoint(found: Checkpoint, verbose: bool) -> None:
    """Print what a checkpoint holds."""
    console = open_console()
    facts = _checkpoint_facts(found)
    console.print(
        f"{escape(printable(found.label))}: {facts['parameters']:,} parameters in "
        f"{len(found.tensors):,} tensors, {format_size(facts['bytes'])}"
    )
    table = grid("dtype", ">tensors", ">parameters", ">size")
    for code, entry in facts["dtypes"].items():
        size = format_size(entry["bytes"])
        table.add_row(code, f"{entry['tensors']:,}", f"{entry['parameters']:,}", size)
    console.print(table)
    console.print()
    table = grid("file", ">tensors", ">size")
    for name, entry in facts["files"].items():
        size = format_size(entry["bytes"])
        table.add_row(escape(printable(name)), f"{entry['tensors']:,}", size)
    console.print(table)
    if verbose:
        table = grid("tensor", "dtype", "shape", "file")
        for tensor in found.tensors.values():
            file = found.locate(tensor.name).file
            shape = str(list(tensor.shape))
            table.add_row(escape(printable(tensor.name)), tensor.dtype, escape(shape), file)
        console.print()
        console.print(table)
    for note in found.notes:
        console.print(f"[yellow]note[/] {escape(note)}")


def checkpoint_as_json(found: Checkpoint) -> None:
    """Print what a checkpoint holds as one JSON object."""
    tensors = {
        t.name: {"dtype": t.dtype, "shape": list(t.shape), "file": found.locate(t.name).file}
        for t in found.tensors.values()
    }
    print_json({"model": found.label, **_checkpoint_facts(found), "tensors": tensors})


def _checkpoint_facts(found: Checkpoint) -> dict[str, Any]:
    dtypes: dict[str, Counter[str]] = {}
    files: dict[str, Counter[str]] = {}
    for tensor in found.tensors.values():
        entry = dtypes.setdefault(tensor.dtype, Counter())
        entry.update(tensors=1, parameters=tensor.numel, bytes=tensor.nbytes)
        files.setdefault(found.locate(tensor.name).file, Counter())["tensors"] += 1
    for name, (identity, _) in found.identity().items():
        files.setdefault(name, Counter())["bytes"] = identity.size
    return {
        "parameters": sum(entry["parameters"] for entry in dtypes.values()),
        "bytes": sum(entry["bytes"] for entry in dtypes.values()),
        "dtypes": dtypes,
        "files": files,
    }
