"""Averages of state dicts in memory against the loops that people write.

    python -m benchmarks.inmemory
    python -m benchmarks.inmemory --bytes 1GB --models 2 8 --tensors 300

Each loop makes a new state dict of the mean. `loop` adds in the dtype of the weights and so rounds
at every step; `loop in fp32` and `stack in fp32` widen each tensor first. The last column says how
many elements each gets wrong, by the exact mean rounded once.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import torch
from rich.table import Table
from torch import Tensor

import streammerge
from benchmarks.measure import Spread, spread
from benchmarks.report import wide_console
from benchmarks.units import parse_size

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Tensors = dict[str, Tensor]
Average = Callable[[list[Tensors]], Tensors]


def loop(models: list[Tensors]) -> Tensors:
    return {name: sum(m[name] for m in models) / len(models) for name in models[0]}  # type: ignore[misc]


def loop_wide(models: list[Tensors]) -> Tensors:
    result = {}
    for name, first in models[0].items():
        total = first.float()
        for model in models[1:]:
            total = total + model[name].float()
        result[name] = (total / len(models)).to(first.dtype)
    return result


def stack_wide(models: list[Tensors]) -> Tensors:
    return {
        name: torch.stack([m[name].float() for m in models]).mean(0).to(first.dtype)
        for name, first in models[0].items()
    }


CONTENDERS: dict[str, Average] = {
    "loop": loop,
    "loop in fp32": loop_wide,
    "stack in fp32": stack_wide,
    "streammerge.average": streammerge.average,
}


def make_models(dtype: torch.dtype, count: int, nbytes: int, tensors: int) -> list[Tensors]:
    """A model and fine-tunes of it."""
    rows = max(1, nbytes // dtype.itemsize // tensors // 1024)
    base = {f"layers.{i}.weight": torch.randn(rows, 1024) / 32 for i in range(tensors)}
    return [
        {name: (t + torch.randn_like(t) / 3200).to(dtype) for name, t in base.items()}
        for _ in range(count)
    ]


def measure(average: Average, models: list[Tensors], rounds: int) -> tuple[Spread, Spread, float]:
    """Return seconds, CPU seconds of all threads, and the share of elements that are wrong."""
    average(models)
    seconds, cpu = [], []
    for _ in range(rounds):
        gc.collect()
        start, begin = time.perf_counter(), time.process_time()
        result = average(models)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - begin)
    wrong = numel = 0
    for name, tensor in list(result.items())[:4]:
        mean = torch.stack([model[name].double() for model in models]).mean(0)
        wrong += int((tensor != mean.to(tensor.dtype)).sum())
        numel += tensor.numel()
    return spread(seconds), spread(cpu), wrong / numel


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--models", type=int, nargs="+", default=[2, 3, 8])
    parser.add_argument("--bytes", type=parse_size, default="200MB", help="of each model")
    parser.add_argument("--tensors", type=int, default=24, help="of each model")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    args = options()
    table = Table("dtype", "models", "by", "seconds", "CPU seconds", "wrong elements")
    for dtype in args.dtypes:
        for count in args.models:
            models = make_models(DTYPES[dtype], count, args.bytes, args.tensors)
            for name, average in CONTENDERS.items():
                seconds, cpu, wrong = measure(average, models, args.rounds)
                table.add_row(dtype, str(count), name, str(seconds), str(cpu), f"{wrong:.2%}")
            table.add_section()
    wide_console().print(table)


if __name__ == "__main__":
    main()
