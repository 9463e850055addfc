"""How every command writes: text in tables, JSON, errors."""

from __future__ import annotations

import json
import os
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streammerge.errors import StreammergeError


def open_console(to_stderr: bool = False) -> Console:
    """Return where text goes."""
    # A pipe gets lines as long as they are: a path must survive grep.
    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 200
    return console


def grid(*columns: str) -> Table:
    """Return an empty table; a column that begins with ">" is for numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    return table


def error(problem: StreammergeError) -> None:
    """Print what is wrong, and what to do."""
    console = open_console(to_stderr=True)
    console.print(f"[bold red]error[/] {escape(problem.message)}")
    for line in (problem.remedy, *getattr(problem, "__notes__", ())):
        if line:
            console.print(f"  {escape(line)}")


def interrupted(state: str) -> None:
    """Say how things stand."""
    open_console(to_stderr=True).print(f"interrupted; {state}")


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
