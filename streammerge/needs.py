"""The memory that the methods of a plan need, beside the windows of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from streammerge.chunks import chunk_length
from streammerge.methods import METHODS
from streammerge.plan import OutputTensor, Plan, Step
from streammerge.tensors import DTYPES

MiB = 1024**2
WORKSPACE = 6 * MiB
"""Running sum and temporaries of one compute thread, and its stack and allocator arena."""
MEASURED_AT_ONCE = 16
"""Tensors that lie in more than one window and are measured at the same time."""
READ_AT_ONCE = 16 * MiB
"""Bytes that are read at a time of a tensor that is needed whole."""
_MEASUREMENT = MiB // 2  # of one model's tensor: the counts of a radix select
_WIDEST = 8  # bytes of an fp64 element


@dataclass(frozen=True, slots=True)
class Whole:
    """What tensors need that are merged whole.

    Attributes:
        tensor: the one that needs most.
        method: what it is merged by.
        working: bytes while it is merged.
        merged: bytes of the largest result, which waits for the windows that it lies in.
    """

    tensor: OutputTensor
    method: str
    working: int
    merged: int


def workspace(plan: Plan) -> int:
    """Return the bytes of a compute thread: running sum, or copies of all inputs of a block."""
    blocks = []
    for tensor in plan.tensors:
        step = plan.steps[tensor.step]
        if step.method and not _works_in_place(step):
            # Methods that work on rows sort them, or look at them in fp64.
            more = 3 * _WIDEST if step.granularity == "row" else 0
            each = 3 * (len(step.sources) + 1) * DTYPES[step.compute].itemsize + more
            blocks.append(each * chunk_length(step, tensor.shape))
    return WORKSPACE + max(blocks, default=0)


def _works_in_place(step: Step) -> bool:
    """Whether a step reads its inputs where they lie, and nothing else."""
    alone = not step.passes and "place" not in METHODS.get(step.method).sees
    return alone and _is_kernel(step)


def _is_kernel(step: Step) -> bool:
    return METHODS.get(step.method).kernel and step.granularity == "element"


def needs_torch(plan: Plan) -> bool:
    """Whether anything is merged by a method that has no compiled loop, or there are none."""
    from streammerge import native

    steps = [step for step in plan.steps if step.action == "merge"]
    return not (all(map(_is_kernel, steps)) and native.is_there())


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


def whole_tensors(plan: Plan) -> Whole | None:
    """Return what tensors need that are merged whole; None where there are none."""
    wholes = []
    for tensor in plan.tensors:
        step = plan.steps[tensor.step]
        if step.granularity == "tensor":
            method, models = METHODS.get(step.method), len(step.sources) - step.has_base
            copies = len(step.sources) * tensor.info.numel * _WIDEST
            working = copies + method.memory(tensor.shape, models) + tensor.info.nbytes
            wholes.append(Whole(tensor, step.method, working + 2 * READ_AT_ONCE, 0))
    if not wholes:
        return None
    most = max(wholes, key=lambda whole: whole.working)
    merged = max(whole.tensor.info.nbytes for whole in wholes)
    return Whole(most.tensor, most.method, most.working, merged)
