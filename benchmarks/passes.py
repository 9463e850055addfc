"""The merge methods alone, from memory to memory, on one thread: ns for each element and pass.

    python -m benchmarks.passes
    python -m benchmarks.passes ties dare_ties --models 4 --elements 256MiB

The inputs are bf16 fine-tunes of one model, merged stretch by stretch as a compute thread does it.
Each pass is timed by the CPU time of its stretches; the lower quartile counts for all of them, so
that what else the machine does matters little. Methods that need whole tensors are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.report import wide_console
from benchmarks.units import parse_size
from streammerge.chunks import chunk_length, unit_length
from streammerge.methods import METHODS, Method
from streammerge.methods.parameters import Value, resolve
from streammerge.methods.running import Task
from streammerge.methods.workspace import Workspace
from streammerge.plan import Step

STRETCH = 1024 * 1024
COLUMNS = 4096
SETTINGS: dict[str, dict[str, Value]] = {
    "average": {"weight": 0.3},
    "task_arithmetic": {"weight": 0.3},
    "expo": {"alpha": 0.3},
    "ties": {"density": 0.2, "weight": 0.5},
    "dare_linear": {"density": 0.2, "weight": 0.5},
    "dare_ties": {"density": 0.2, "weight": 0.5},
    "della": {"density": 0.4, "weight": 0.5},
    "della_linear": {"density": 0.4, "weight": 0.5},
    "breadcrumbs": {"density": 0.5, "weight": 0.5},
    "breadcrumbs_ties": {"density": 0.5, "weight": 0.5},
    "sce": {"select_topk": 0.2},
    "slerp": {"t": 0.4},
    "nearswap": {"t": 0.001},
}


def make_task(method: Method, models: int, numel: int, has_base: bool) -> Task:
    """Return what a plan would ask for."""
    shape = (numel // COLUMNS, COLUMNS)
    settings = SETTINGS.get(method.name, {})
    parameters = dict(resolve(method.name, method.parameters, settings, [{}] * models))
    granularity = method.granularity(parameters, shape)
    step = Step(action="merge", sources=(), granularity=granularity)
    make = method.measure if method.passes_for(parameters) else None
    return Task(
        method=method,
        parameters=parameters,
        compute="F32" if granularity == "element" else "F64",
        has_base=has_base,
        name="w",
        shape=shape,
        rows=granularity == "row",
        unit=unit_length(step, shape),
        chunk=chunk_length(step, shape),
        measured=make(models, shape, parameters) if make else None,
    )


def passes(task: Task, inputs: Sequence[Tensor], out: Tensor) -> Iterator[float]:
    """Yield the ns for each element of each pass: those of the measurement, then the merge."""
    workspace = Workspace()
    measured: Any = task.measured

    def observe(start: int) -> None:
        for part in task.observe([t[start : start + STRETCH] for t in inputs], workspace, start):
            measured.add(part)

    def merge(start: int) -> None:
        stretch = slice(start, start + STRETCH)
        task([tensor[stretch] for tensor in inputs], out[stretch], workspace, start, start)

    while measured is not None:
        yield _nanoseconds(observe, out.numel())
        if not measured.another_round():
            break
    yield _nanoseconds(merge, out.numel())


def _nanoseconds(work: Callable[[int], None], numel: int) -> float:
    seconds = []
    for start in range(0, numel, STRETCH):
        begin = time.thread_time()
        work(start)
        seconds.append(time.thread_time() - begin)
    return sorted(seconds)[len(seconds) // 4] / STRETCH * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--models", type=int, default=2, help="where a method takes any number")
    parser.add_argument("--elements", type=parse_size, default="64MiB", help="of each model")
    args = parser.parse_args()
    torch.set_num_threads(1)
    numel = max(1, args.elements // STRETCH) * STRETCH
    base = torch.empty(numel, dtype=torch.bfloat16).normal_(0, 0.02)
    tuned = [torch.empty_like(base).normal_(0, 0.002).add_(base) for _ in range(args.models)]
    table = Table("method", "models", "ns an element", "pass by pass")
    for name in args.methods:
        method = METHODS.get(name)
        models = max(method.models[0], min(args.models, method.models[1] or args.models))
        has_base = method.base != "none"
        task = make_task(method, models, numel, has_base)
        if task.unit == numel:
            continue
        times = list(passes(task, [*tuned[:models], *[base] * has_base], torch.empty_like(base)))
        each = " + ".join(f"{t:.2f}" for t in times)
        table.add_row(name, str(models), f"{sum(times):.2f}", each)
    wide_console().print(table)


if __name__ == "__main__":
    main()
