"""Kills a merge with SIGKILL at the k-th call that changes a file, in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

CHANGES = (
    "open",
    "pwrite",
    "fsync",
    "ftruncate",
    "posix_fallocate",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "rmdir",
)
"""The functions of `os` by which a file, or a name, changes; `Path` and `shutil` use them too."""


def killed_at(number: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that is killed before its `number`-th change.

    Returns:
        whether it got that far; False where the action came to its end before.
    """
    child = os.fork()
    if child == 0:
        try:
            _kill_at(number)
            action()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the action failed by itself"
    return False


def _kill_at(number: int) -> None:
    left = [number]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return original(*args, **kwargs)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
