"""Other programs as oracles: run in an environment of their own, skipped where that is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[2] / ".venv-mergekit" / "bin" / "python"
needs_oracle = pytest.mark.skipif(not PYTHON.exists(), reason="there is no .venv-mergekit")


def run_oracle(script: str, *arguments: str | Path, timeout: int = 280) -> str:
    """Run a script with mergekit, peft and transformers at hand; returns what it printed."""
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
