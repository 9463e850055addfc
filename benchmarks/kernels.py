"""The arithmetic alone, from memory to memory, per dtype and number of models, against memcpy.

    python -m benchmarks.kernels
    python -m benchmarks.kernels --dtypes bf16 --models 2 8 --threads 1
    python -m benchmarks.kernels --device cuda

Calls the merge method block by block as a compute thread does, on buffers larger than the caches.
A merge that follows the disk needs no more than the disk gives; what is above it is idle time. The
last column compares the memory traffic (inputs read, output written) with what copying moves.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import machine
from benchmarks.measure import Spread, spread
from benchmarks.report import wide_console
from benchmarks.units import parse_size
from streammerge.lanes import make_lane
from streammerge.methods import METHODS
from streammerge.methods.running import Task
from streammerge.stretch import Stretch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_DECIMALS = (0.7, 0.3, 0.5, 0.2, 0.1, 0.4, 0.9, 0.6)
Work = Callable[[], None]
"""Goes once over a thread's buffers."""


@dataclass(frozen=True)
class Result:
    """Speed of one kernel, in bytes of input a second and all threads together."""

    dtype: str
    models: int
    weights: str
    threads: int
    speed: Spread  # GB/s
    of_memcpy: float  # memory traffic, as a share of memcpy's


def method_work(dtype: str, models: int, equal: bool, nbytes: int, device: str) -> Work:
    """One thread's pass of the `average` method: the only place that knows streammerge's calls."""
    weights = tuple(1.0 if equal else _DECIMALS[i % 8] for i in range(models))
    method = Task(
        method=METHODS.get("average"),
        parameters={"weight": weights, "normalize": True},
        compute="F32",
        has_base=False,
        name="",
        shape=(),
        rows=False,
        unit=1,
        chunk=1,
    )
    lane = make_lane(device)  # in the calling thread: it sets the intra-op threads
    base = _random(nbytes, DTYPES[dtype])
    inputs = [base + 0.05 * _random(nbytes, DTYPES[dtype]) for _ in range(models)]
    stretches = [Stretch.of_tensor(tensor) for tensor in inputs]
    out = Stretch.of_tensor(torch.empty_like(inputs[0]))
    step = lane.workspace.numel(torch.float32)

    def work() -> None:
        for start in range(0, out.numel(), step):
            result = out[start : start + step]
            lane.run(method, [tensor[start : start + step] for tensor in stretches], result, 0, 0)

    return work


def memcpy_work(nbytes: int) -> Work:
    torch.set_num_threads(1)
    source = _random(nbytes, torch.bfloat16)
    target = torch.empty_like(source)

    def work() -> None:
        target.copy_(source)

    return work


def _random(nbytes: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(nbytes // dtype.itemsize, dtype=dtype).normal_(0, 0.02)


def passes_per_second(make: Callable[[], Work], threads: int, seconds: float) -> list[float]:
    """Passes of all threads together in each of several rounds, started at once."""
    barrier = threading.Barrier(threads)
    rates: list[list[float]] = [[] for _ in range(threads)]

    def run(index: int) -> None:
        work = make()
        work()  # faults the output in and fills the workspace
        for _ in range(5):
            barrier.wait()
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds / 5:
                work()
                count += 1
            rates[index].append(count / (time.perf_counter() - start))

    workers = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [sum(round_rates) for round_rates in zip(*rates, strict=True)]


def measure_all(args: argparse.Namespace) -> tuple[dict[int, Spread], list[Result]]:
    device, nbytes = args.device, args.bytes
    memcpy = {
        threads: _speed(partial(memcpy_work, nbytes), threads, args.seconds, nbytes)
        for threads in args.threads
    }
    results = []
    for dtype in args.dtypes:
        for models in args.models:
            for equal in (True, False):
                make = partial(method_work, dtype, models, equal, nbytes, device)
                for threads in args.threads:
                    speed = _speed(make, threads, args.seconds, models * nbytes)
                    traffic = speed.median * (models + 1) / models
                    share = traffic / (2 * memcpy[threads].median)
                    name = "equal" if equal else "decimal"
                    results.append(Result(dtype, models, name, threads, speed, share))
    return memcpy, results


def _speed(make: Callable[[], Work], threads: int, seconds: float, nbytes: int) -> Spread:
    rates = passes_per_second(make, threads, seconds)
    return spread(rate * nbytes / 1e9 for rate in rates)


def show(memcpy: dict[int, Spread], results: Sequence[Result], args: argparse.Namespace) -> None:
    title = f"average on {args.device}, with the look for NaN"
    table = Table("dtype", "models", "weights", title=title)
    for threads in args.threads:
        table.add_column(f"GB/s of input, {threads} thr.", justify="right")
        table.add_column("of memcpy", justify="right")
    keys = dict.fromkeys((r.dtype, r.models, r.weights) for r in results)
    for dtype, models, weights in keys:
        cells = []
        for result in results:
            if (result.dtype, result.models, result.weights) == (dtype, models, weights):
                cells += [str(result.speed), f"{result.of_memcpy:.0%}"]
        table.add_row(dtype, str(models), weights, *cells)
    console = wide_console()
    console.print(table)
    for threads, speed in memcpy.items():
        console.print(f"memcpy, {threads} threads: {speed} GB/s copied")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--models", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bytes", type=parse_size, default="32MiB", help="of each model")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …: copies both ways included")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    return parser.parse_args()


def main() -> None:
    args = options()
    facts = machine.describe(Path.cwd())
    memcpy, results = measure_all(args)
    show(memcpy, results, args)
    if args.json:
        speeds = {threads: asdict(speed) for threads, speed in memcpy.items()}
        runs = [asdict(result) for result in results]
        content = {"machine": facts, "memcpy": speeds, "kernels": runs}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
