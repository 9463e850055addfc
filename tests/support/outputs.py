"""Reads what a merge wrote beside the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text())


def manifest(out: Path) -> Any:
    """The machine-readable account of the merge."""
    return read_json(out / "streammerge.json")


def sha256(path: Path) -> str:
    """The digest of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shards_of(out: Path) -> list[Path]:
    """The weight files of an output, in order of name."""
    return sorted(out.glob("*.safetensors"))
