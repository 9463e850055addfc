"""How the memory budget becomes the shape of the pipeline.

    budget ≥ BASE + frames · Σ(slots + output) + workers · WORKSPACE + tensors · PER_TENSOR
             + what the inputs need to be read (`Checkpoint.scratch`)
             + what the methods need to measure, or to see whole (`needs.py`)

The pipeline gets what the budget leaves, but no more than helps. Neither the size of the models nor
that of a shard occurs, and that of a tensor only where a method must see it whole; more models make
the windows smaller, not the sum larger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from streammerge.checkpoint import Checkpoint, as_read
from streammerge.errors import BudgetError, printable
from streammerge.methods.measuring import CHUNK
from streammerge.needs import MiB, Whole, measurements, rows, whole_tensors, workspace
from streammerge.plan import Plan
from streammerge.storage import ALIGNMENT
from streammerge.tensors import DTYPES, format_size

BASE = 240 * MiB
"""Anonymous memory of the process with torch loaded, and of its threads (measured)."""
CLIENT = 32 * MiB
"""The client of the Hub and its connections (measured: 18 MiB without TLS)."""
PER_DOWNLOAD = 48 * MiB
"""What the client uses for each file that it downloads at the same time (measured)."""
PER_TENSOR = 1024
"""Python objects for one tensor of one checkpoint or of the plan."""
FRAMES = 4
"""Windows in flight: one is written, one merged, two are read; or two for each growing shard."""
USEFUL = 192 * MiB
"""Buffers beyond this bring no more speed (measured)."""
_SMALLEST, _LARGEST = 256 * 1024, 32 * MiB
_SLACK = 1.125  # room around reads in a slot (`windows.room_for`)
_SLOT_EXTRA = 16 * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of the pipeline; it never changes the bits.

    Attributes:
        memory: the budget, bytes.
        window: bytes of a window of the output.
        frames: windows in flight.
        slots: for each input, the bytes of its slot in a frame.
        workers: compute threads.
        abreast: shards that may grow at the same time, each digested by a thread of its own.
        at_once: tensors that are merged whole at the same time, if any.
        peak: expected peak of anonymous memory, bytes.
        reason: where the budget comes from.
    """

    memory: int
    window: int
    frames: int
    slots: tuple[int, ...]
    workers: int
    abreast: int
    at_once: int
    peak: int
    reason: str

    @property
    def downloads(self) -> int:
        """Files that may be downloaded at the same time, before the buffers are allocated."""
        return max(1, min(8, (self.memory - BASE - CLIENT) // PER_DOWNLOAD))

    def describe(self) -> str:
        """Return the layout in one line for people."""
        return (
            f"{format_size(self.memory, binary=True)} ({self.reason}); "
            f"{self.frames} windows of {format_size(self.window, binary=True)} in flight, "
            f"{self.workers} compute threads"
        )


def make_layout(plan: Plan, checkpoints: Sequence[Checkpoint], memory: int | None) -> Layout:
    """Return the layout that the budget allows.

    Args:
        plan: the merge.
        checkpoints: its opened inputs.
        memory: the budget in bytes; None for what is useful, at most half of what is free.

    Raises:
        BudgetError: the budget is too small; the message gives the least that works.
    """
    workers = max(1, min(4, _cpus()))
    tensors = sum(len(checkpoint.tensors) for checkpoint in checkpoints) + len(plan.tensors)
    scratch = sum(checkpoint.scratch for checkpoint in checkpoints)  # one thread reads each
    whole = whole_tensors(plan)
    each = whole.working + scratch if whole else 0
    fixed = BASE + PER_TENSOR * tensors + workers * workspace(plan) + measurements(plan)
    fixed += scratch + each + (FRAMES * whole.merged if whole else 0)
    fixed += CLIENT if any(checkpoint.pinned for checkpoint in checkpoints) else 0
    ratios = [_ratio(plan, index, checkpoint) for index, checkpoint in enumerate(checkpoints)]
    row_room = rows(plan)
    smallest = max(_SMALLEST, CHUNK * 8) if any(s.passes for s in plan.steps) else _SMALLEST

    def cost(window: int, frames: int) -> int:
        return frames * (window + sum(_slots(ratios, window, row_room)))

    least = fixed + cost(smallest, FRAMES)
    if memory is None:
        budget, reason = _useful(least, fixed + USEFUL + (workers - 1) * each, whole)
    else:
        budget, reason = memory, "as given"
    if least > budget:
        given = f"--memory {format_size(budget, binary=True)} is too small"
        if whole and whole.working > least // 2:
            raise _too_small_for(whole, given, least)
        raise BudgetError(
            f"{given} for {len(checkpoints)} models with {tensors:,} tensors",
            f"The least that works here is --memory {-(-least // MiB)}MiB.",
        )
    at_once = min(workers, 1 + (budget - least) // each) if each else 1
    fixed += (at_once - 1) * each
    room = min(budget - fixed, USEFUL)
    abreast = _abreast(plan, workers)
    while abreast > 1 and cost(smallest, 2 * abreast) > room:
        abreast -= 1
    frames = max(FRAMES, 2 * abreast)
    per_byte = frames * (1 + sum(ratio * _SLACK for ratio in ratios))
    window = int((room - cost(0, frames)) / per_byte)
    # A small output is cut into several windows too, so that reading and writing overlap.
    longest = max(shard.file_size for shard in plan.shards)
    window = max(smallest, min(window, _LARGEST, longest // 8))
    window = window // ALIGNMENT * ALIGNMENT
    slots = tuple(_slots(ratios, window, row_room))
    peak = fixed + cost(window, frames)
    return Layout(budget, window, frames, slots, workers, abreast, at_once, peak, reason)


def _abreast(plan: Plan, workers: int) -> int:
    """Return how many shards may grow at the same time.

    A thread digests 1.1 to 2 GB a second of a shard, which fast disks and many processors outrun.
    What is measured first, or seen whole, is read in the order of one shard, and slower than that.
    """
    if any(step.passes or step.granularity == "tensor" for step in plan.steps):
        return 1
    return min(workers, len(plan.shards))


def _useful(least: int, wanted: int, whole: Whole | None) -> tuple[int, str]:
    """Return the budget where none is given, and where it comes from."""
    free = available_memory()
    if free is None or wanted <= free // 2:
        return wanted, "enough for full speed"
    if whole and least > free:
        given = f"{format_size(free, binary=True)} of memory are free, which is too little"
        raise _too_small_for(whole, given, least)
    return max(free // 2, least), "half of what is free"


def _too_small_for(whole: Whole, given: str, least: int) -> BudgetError:
    shape, need = list(whole.tensor.shape), format_size(whole.working, binary=True)
    return BudgetError(
        f"{given}: {whole.method} has to see {printable(whole.tensor.name)} whole, of shape "
        f"{shape}, and needs {need} for it",
        f"The least that works here is --memory {-(-least // MiB)}MiB; or give such tensors "
        "another method in the recipe's `rules`.",
    )


def _slots(ratios: list[float], window: int, rows: int) -> list[int]:
    return [
        _aligned(int(window * ratio * _SLACK) + rows + _SLOT_EXTRA) if ratio else 0
        for ratio in ratios
    ]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _ratio(plan: Plan, model: int, checkpoint: Checkpoint) -> float:
    """Return the most bytes of an input that a byte of output can need."""
    used = [t for t in plan.tensors if model in plan.steps[t.step].sources]
    pairs = {(as_read(checkpoint, tensor.name).dtype, tensor.dtype) for tensor in used}
    return max((DTYPES[a].itemsize / DTYPES[b].itemsize for a, b in pairs), default=0.0)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Return the bytes of memory that can be had now; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
