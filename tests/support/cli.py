"""Runs the command line: inside this process where that will do, else in one of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def in_process(capsys: pytest.CaptureFixture[str], *args: object) -> Done:
    """Run `python -m streammerge ARGS` in this process: quick, and true to the entry point."""
    capsys.readouterr()
    code, collecting = 0, gc.get_threshold()
    with mock.patch.object(sys, "argv", ["streammerge", *map(str, args)]):
        try:
            with contextlib.suppress(KeyError):
                del sys.modules["streammerge.__main__"]
            runpy.run_module("streammerge", run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            gc.set_threshold(*collecting)  # the command's own is for its whole process
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)


def command(*args: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "streammerge", *map(str, args)]


def start(*args: object, module: str = "streammerge") -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    env = os.environ | {"NO_COLOR": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        preexec_fn=_mind_interrupts,
    )


def _mind_interrupts() -> None:
    """Let SIGINT interrupt the process: a shell has what it starts with & ignore it, pytest too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*args: object, timeout: float = 100) -> Done:
    """Run the command in a process of its own."""
    process = start(*args)
    out, err = process.communicate(timeout=timeout)
    return Done(process.returncode, out, err)


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60
) -> None:
    """Poll until the condition holds while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            _, err = process.communicate()
            pytest.fail(f"ended with {process.returncode} before it was to be stopped:\n{err}")
        assert time.monotonic() < end, "the merge never got that far"
        time.sleep(0.002)


def data_written(folder: Path, known: set[str]) -> int:
    """Bytes on the disk of all files under a folder, but for the entries that were there before."""
    total = 0
    for entry in folder.iterdir():
        if entry.name in known:
            continue
        for path in (entry, *entry.rglob("*")) if entry.is_dir() else (entry,):
            with contextlib.suppress(OSError):
                total += path.stat().st_blocks * 512 if path.is_file() else 0
    return total
