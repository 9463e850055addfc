"""How a command ends where it does not end well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from streammerge.cli import console
from streammerge.errors import StreammergeError


@contextmanager
def errors_for_people(
    interrupted: str = "nothing was left in the output folder",
) -> Iterator[None]:
    """Turn what a user did wrong into a short message and an exit status."""
    try:
        yield
    except StreammergeError as error:
        console.error(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as interruption:
        console.interrupted(" ".join(getattr(interruption, "__notes__", [interrupted])))
        raise typer.Exit(130) from None
