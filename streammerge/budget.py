"""How the memory budget becomes the shape of the pipeline.

    budget ≥ BASE + frames · Σ(slots + output) + workers · WORKSPACE + tensors · PER_TENSOR
             + what the inputs need to be read (`Checkpoint.scratch`)

The pipeline gets what the budget leaves, but no more than helps. Neither the size of the models nor
that of a shard or tensor occurs; more models make the windows smaller, not the sum larger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from streammerge.checkpoint import Checkpoint, as_read
from streammerge.errors import BudgetError
from streammerge.methods import METHODS
from streammerge.methods.measuring import CHUNK
from streammerge.plan import Plan
from streammerge.storage import ALIGNMENT
from streammerge.tensors import DTYPES, format_size
from streammerge.windows import chunk_length

MiB = 1024**2
BASE = 240 * MiB
"""Anonymous memory of the process with torch loaded, and of its threads (measured)."""
WORKSPACE = 4 * MiB
"""Running sum and temporaries of one compute thread, and its stack and allocator arena."""
CLIENT = 32 * MiB
"""The client of the Hub and its connections (measured: 18 MiB without TLS)."""
PER_DOWNLOAD = 48 * MiB
"""What the client uses for each file that it downloads at the same time (measured)."""
PER_TENSOR = 1024
"""Python objects for one tensor of one checkpoint or of the plan."""
FRAMES = 4
"""Windows in flight: one is written, one merged, two are read."""
USEFUL = 192 * MiB
"""Buffers beyond this bring no more speed (measured)."""
MEASURED_AT_ONCE = 16
"""Tensors that lie in more than one window and are measured at the same time."""
_MEASUREMENT = MiB // 2  # of one model's tensor: the counts of a radix select
_SMALLEST, _LARGEST = 256 * 1024, 32 * MiB
_SLACK = 1.125  # room around reads in a slot (`windows.room_for`)
_SLOT_EXTRA = 16 * ALIGNMENT
_WIDEST = 8  # bytes of an fp64 element


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of the pipeline; it never changes the bits.

    Attributes:
        memory: the budget, bytes.
        window: bytes of a window of the output.
        frames: windows in flight.
        slots: for each input, the bytes of its slot in a frame.
        workers: compute threads.
        peak: expected peak of anonymous memory, bytes.
        reason: where the budget comes from.
    """

    memory: int
    window: int
    frames: int
    slots: tuple[int, ...]
    workers: int
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
    fixed = BASE + PER_TENSOR * tensors + workers * _workspace(plan) + measurements(plan)
    fixed += whole_tensors(plan) + sum(c.scratch for c in checkpoints)  # one thread reads each
    fixed += CLIENT if any(checkpoint.pinned for checkpoint in checkpoints) else 0
    ratios = [_ratio(plan, index, checkpoint) for index, checkpoint in enumerate(checkpoints)]
    row_room = rows(plan)
    smallest = max(_SMALLEST, CHUNK * 8) if any(s.passes for s in plan.steps) else _SMALLEST

    def cost(window: int) -> int:
        return FRAMES * (window + sum(_slots(ratios, window, row_room)))

    longest = max(shard.file_size for shard in plan.shards)
    if memory is None:
        reason = "enough for full speed"
        budget = fixed + USEFUL
        free = available_memory()
        if free is not None and budget > free // 2:
            budget, reason = max(free // 2, fixed + cost(smallest)), "half of what is free"
    else:
        budget, reason = memory, "as given"
    if fixed + cost(smallest) > budget:
        least = -(-(fixed + cost(smallest)) // MiB)
        raise BudgetError(
            f"--memory {format_size(budget, binary=True)} is too small for "
            f"{len(checkpoints)} models with {tensors:,} tensors",
            f"The least that works here is --memory {least}MiB.",
        )
    room = min(budget - fixed, USEFUL)
    per_byte = FRAMES * (1 + sum(ratio * _SLACK for ratio in ratios))
    window = int((room - cost(0)) / per_byte)
    # A small output is cut into several windows too, so that reading and writing overlap.
    window = max(smallest, min(window, _LARGEST, longest // 8))
    window = window // ALIGNMENT * ALIGNMENT
    slots = tuple(_slots(ratios, window, row_room))
    return Layout(budget, window, FRAMES, slots, workers, fixed + cost(window), reason)


def _slots(ratios: list[float], window: int, rows: int) -> list[int]:
    return [
        _aligned(int(window * ratio * _SLACK) + rows + _SLOT_EXTRA) if ratio else 0
        for ratio in ratios
    ]


def _workspace(plan: Plan) -> int:
    """Return the bytes of a compute thread: running sum, or copies of all inputs of a block."""
    blocks = [
        3 * (len(step.sources) + 1) * CHUNK * DTYPES[step.compute].itemsize
        for step in plan.steps
        if step.method and step.method != "average"
    ]
    return WORKSPACE + max(blocks, default=0)


def measurements(plan: Plan) -> int:
    """Return the bytes of measurements that are under way."""
    most = max((len(step.sources) for step in plan.steps if step.passes), default=0)
    return MEASURED_AT_ONCE * most * _MEASUREMENT


def rows(plan: Plan) -> int:
    """Return the bytes that whole rows, or a chunk of them, can need beyond a window."""
    lengths = [
        2 * chunk_length(plan.steps[tensor.step], tensor.shape) * _WIDEST
        for tensor in plan.tensors
        if plan.steps[tensor.step].granularity == "row"
    ]
    return max(lengths, default=0)


def whole_tensors(plan: Plan) -> int:
    """Return the most memory that a method needs for a tensor that it must see whole."""
    needs = []
    for tensor in plan.tensors:
        step = plan.steps[tensor.step]
        if step.granularity == "tensor":
            method = METHODS.get(step.method)
            needs.append(method.memory(tensor.shape, len(step.sources)))
    return max(needs, default=0)


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
