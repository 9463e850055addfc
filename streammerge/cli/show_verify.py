"""What a person sees of a verification: a line when all is well, else every finding."""

from __future__ import annotations

from dataclasses import asdict

from rich.markup import escape

from streammerge.cli.console import open_console, print_json
from streammerge.errors import printable
from streammerge.tensors import format_size
from streammerge.verifying import Verification


def verification(done: Verification) -> None:
    """Print what was checked and what was found."""
    console = open_console()
    for finding in done.findings:
        what = "\n".join(printable(line) for line in finding.what.split("\n"))
        console.print(f"[bold red]{escape(printable(finding.where))}[/] {escape(what)}")
    out = escape(printable(str(done.out)))
    if done.findings:
        count = len(done.findings)
        console.print(f"{out}: {count} finding{'s' * (count > 1)}; do not use it as it is")
        return
    console.print(
        f"{out} is as it was written: {done.shards} weight and {done.files} other files, "
        f"{done.tensors:,} tensors, {format_size(done.bytes)}"
    )
    if done.recomputed:
        console.print(f"  {done.recomputed:,} tensors computed again from the inputs, bit for bit")
    if done.loaded:
        console.print(f"  transformers loads it as {escape(done.loaded)}, nothing missing or left")


def verification_as_json(done: Verification) -> None:
    """Print what was checked and what was found as one JSON object."""
    print_json({**asdict(done), "out": str(done.out), "ok": done.ok})
