"""The command line: parses and prints, and leaves everything else to `api`."""

import gc

_OBJECTS_BEFORE_COLLECTING = 100_000
"""Python's own few hundred have its collector go over all that is being loaded, again and again."""


def main() -> None:
    """Run the command line."""
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTING)
    from streammerge.cli.app import app

    app()
