"""One method run on tensors in memory, cut into stretches as the pipeline might cut them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streammerge.chunks import chunk_length, unit_length
from streammerge.methods import METHODS, Granularity, Method
from streammerge.methods.measuring import Measurement
from streammerge.methods.parameters import Value, resolve
from streammerge.methods.running import Task
from streammerge.methods.workspace import Workspace
from streammerge.plan import Step

Settings = Mapping[str, Value]


def run_method(
    name: str,
    tensors: Sequence[Tensor],
    base: Tensor | None = None,
    settings: Settings | None = None,
    each: Sequence[Settings] | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    compute: str = "F32",
    stretch: int | None = None,
    tensor_name: str = "layers.0.weight",
) -> Tensor:
    """Merge tensors of one shape by a method.

    Args:
        name: of the method.
        tensors, base: whole tensors of one shape, any float dtype.
        settings, each: what a recipe would set for all models, and for each.
        out_dtype: of the result; that of the first tensor by default.
        compute: of the computation on single elements; on rows and whole tensors it is fp64.
        stretch: elements of a stretch, rounded to what the method allows; all at once by default.
    """
    method = METHODS.get(name)
    shape = tuple(tensors[0].shape)
    parameters = dict(
        resolve(method.name, method.parameters, settings or {}, each or [{}] * len(tensors))
    )
    method.check(parameters)
    sources = [t.reshape(-1) for t in (*tensors, *([base] if base is not None else []))]
    granularity = method.granularity(parameters, shape)
    step = _step(granularity, len(sources))
    task = Task(
        method=method,
        parameters=parameters,
        compute=compute if granularity == "element" else "F64",
        has_base=base is not None,
        name=tensor_name,
        shape=shape,
        rows=granularity == "row",
        unit=unit_length(step, shape),
        chunk=chunk_length(step, shape),
        measured=_measured(method, len(tensors), shape, parameters),
    )
    out = torch.empty(math.prod(shape), dtype=out_dtype or tensors[0].dtype)
    if granularity == "tensor":
        task.whole([source.to(torch.float64, copy=True) for source in sources], out)
    else:
        _run(task, sources, out, stretch or max(1, out.numel()))
    return out.reshape(shape)


def _measured(
    method: Method, count: int, shape: tuple[int, ...], parameters: Mapping[str, Any]
) -> Measurement | None:
    if method.measure is None or not method.passes_for(parameters):
        return None
    return method.measure(count, shape, parameters)


def _step(granularity: Granularity, count: int) -> Step:
    return Step(action="merge", sources=tuple(range(count)), granularity=granularity)


def _run(task: Task, sources: Sequence[Tensor], out: Tensor, stretch: int) -> None:
    workspace, numel = Workspace(), out.numel()
    measured: Any = task.measured
    chunks = max(1, stretch // task.chunk) * task.chunk
    while measured is not None:
        starts = list(range(0, numel, chunks))
        for start in reversed(starts):  # the order must not matter
            for part in task.observe(
                [s[start : start + chunks] for s in sources], workspace, start
            ):
                measured.add(part)
        if not measured.another_round():
            break
    for first in range(0, numel, stretch):
        after = min(first + stretch, numel)
        start = first // task.unit * task.unit
        stop = min(-(-after // task.unit) * task.unit, numel)
        task([s[start:stop] for s in sources], out[first:after], workspace, start, first)
