"""The command line: parses and prints, and leaves everything else to `api`."""

from streammerge.cli.app import main

__all__ = ["main"]
