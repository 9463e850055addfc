"""The progress bar: bytes, rate, time left, and the memory in use."""

from __future__ import annotations

import sys

from streammerge.tensors import format_size


class ProgressBar:
    """Counts bytes read and written; call it with those since the last call.

    Args:
        total: bytes of the whole merge.
        enabled: False draws nothing; neither does a stderr that is no terminal.
        stage: what is being done.
    """

    def __init__(self, total: int, enabled: bool, stage: str = "merging") -> None:
        from tqdm import tqdm  # not for help

        self._bar = tqdm(
            total=total,
            unit="B",
            unit_scale=True,
            desc=stage,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=None if enabled else True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_fmt} "
            "{remaining} left{postfix}",
        )

    def __call__(self, nbytes: int) -> None:
        if not self._bar.disable:
            self._bar.set_postfix_str(f"memory {memory_in_use()}", refresh=False)
            self._bar.update(nbytes)

    def stage(self, name: str, nbytes: int, total: int) -> None:
        """Count the bytes of a stage; with another one the bar begins anew."""
        if not self._bar.disable and (self._bar.desc, self._bar.total) != (name, total):
            self._bar.set_description_str(name, refresh=False)
            self._bar.reset(total)
        self(nbytes)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def memory_in_use() -> str:
    """Return this process's anonymous memory, for people; "?" where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return "?"
    return format_size(int(line.split()[1]) * 1024, binary=True)
