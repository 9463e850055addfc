"""What a merge needs from elsewhere, fetched before it begins: several files at once."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from streammerge.checkpoint import Checkpoint
from streammerge.errors import DiskSpaceError
from streammerge.plan import Plan
from streammerge.storage import Download
from streammerge.tensors import format_size

_SPARE = 16_000_000  # bytes left free on a disk for what else the cache writes
_PATIENCE = 20.0  # seconds that threads get to end, a connection's timeout among them
_GLANCE = 0.2  # seconds between two looks at whether they have

DownloadProgress = Callable[[int, int], None]


def needed_downloads(
    plan: Plan, checkpoints: Sequence[Checkpoint], without: Collection[str] = ()
) -> list[Download]:
    """Return what must be fetched or checked before a plan can be executed.

    Args:
        plan: the merge.
        checkpoints: its opened inputs.
        without: names of output shards that are there already.
    """
    names: list[set[str]] = [set() for _ in checkpoints]
    for shard in plan.shards:
        for tensor in shard.tensors if shard.file not in without else ():
            for model in plan.steps[tensor.step].sources:
                names[model].add(tensor.name)
    found = (c.downloads(wanted) for c, wanted in zip(checkpoints, names, strict=True))
    return list(dict.fromkeys(download for downloads in found for download in downloads))


def check_space(downloads: Sequence[Download], out: Path, out_bytes: int) -> None:
    """Refuse downloads that do not fit on their disks, or not together with the output.

    Args:
        downloads: what is to be fetched.
        out: folder of the output, there or not.
        out_bytes: what the output still needs.

    Raises:
        DiskSpaceError: with what is needed and what is free.
    """
    disks: dict[int, Path] = {}
    needed: Counter[int] = Counter()
    for download in downloads:
        folder = _existing(download.folder)
        disk = os.stat(folder).st_dev
        disks.setdefault(disk, folder)
        needed[disk] += download.missing
    for disk, folder in disks.items():
        with_out = os.stat(_existing(out)).st_dev == disk
        total = needed[disk] + _SPARE + (out_bytes if with_out else 0)
        free = shutil.disk_usage(folder).free
        if needed[disk] and total > free:
            what = "inputs in the cache and the output need" if with_out else "cached inputs need"
            raise DiskSpaceError(
                f"the {what} {format_size(total)}, {folder} has {format_size(free)} free",
                "Give --download stream, which stores no inputs; or free some space, or set "
                "HF_HOME to a folder on another disk.",
            )


def _existing(path: Path) -> Path:
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def fetch(downloads: Sequence[Download], at_once: int, progress: DownloadProgress) -> list[str]:
    """Carry out downloads; return what the user should know.

    Args:
        downloads: what is to be fetched or checked.
        at_once: how many of them at the same time.
        progress: called with the bytes fetched since the last call, and those of all downloads.

    Raises:
        StreammergeError: the first failure; the other downloads are called off.
    """
    total = sum(download.missing for download in downloads)
    queue: SimpleQueue[Download] = SimpleQueue()
    for download in sorted(downloads, key=lambda download: -download.missing):
        queue.put(download)
    stop, notes = threading.Event(), list[str]()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                notes.extend(queue.get_nowait().run(lambda n: progress(n, total), stop))
        except Empty:
            pass
        except BaseException as error:
            failures.append(error)
            stop.set()

    # Daemons: a thread that hangs in the client must not keep an interrupted process alive.
    threads = [
        threading.Thread(target=work, name=f"download {number}", daemon=True)
        for number in range(min(at_once, len(downloads)))
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        _break_off(downloads, threads)
        raise
    if failures:
        raise failures[0]
    return notes


def _break_off(downloads: Sequence[Download], threads: Sequence[threading.Thread]) -> None:
    """Cut connections until all threads have ended: the client opens others and tries again."""
    end = time.monotonic() + _PATIENCE
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        for download in downloads:
            download.cut()
        for thread in threads:
            thread.join(_GLANCE / len(threads))
