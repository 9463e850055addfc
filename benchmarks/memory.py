"""Does a merge stay under `--memory`, whatever the tensor and however many the models?

    python -m benchmarks.memory                         # 2 × 4 GB, one tensor ≥ 1 GB, 512 MiB
    python -m benchmarks.memory --size 400MB --largest 100MB

Two checkpoints with one very large tensor are merged in the budget; then again from a warm page
cache, inside a memory cgroup that kills whoever passes its limit, and as eight models (folders of
hard links to the two: the memory does not know). Exit status 1 where a peak is over what was
promised.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from benchmarks import machine
from benchmarks.bench import Bench, run_state
from benchmarks.cgroup import CgroupUnavailable, memory_cgroup
from benchmarks.contenders import Contender, ours
from benchmarks.data import KINDS, make_checkpoint
from benchmarks.peers import Job
from benchmarks.report import Record, wide_console
from benchmarks.units import MIB, add_workdir_option, mebibytes, parse_size, workspace

SAME = 1.05  # peaks this close are the same: what torch and malloc do varies between two runs


def link_models(folder: Path, originals: tuple[Path, ...], count: int) -> tuple[Path, ...]:
    """As many checkpoint folders as asked for, in the disk space of the originals."""
    models = []
    for number in range(count):
        model = folder / f"linked_{count}_{number}"
        model.mkdir()
        for file in originals[number % len(originals)].iterdir():
            os.link(file, model / file.name)
        models.append(model)
    return tuple(models)


def measure_all(args: argparse.Namespace, folder: Path) -> list[Record]:
    two = tuple(
        make_checkpoint(
            folder / f"model_{number}",
            args.size,
            shards=args.shards,
            dtype=args.dtype,
            largest=args.largest,
            seed=number,
        )
        for number in range(2)
    )
    many = link_models(folder, two, args.models)
    budget = f"--memory {args.memory}"
    free = ours(budget, name="2 models")
    caged = ours(budget, name=f"2 models, cgroup of {args.cgroup // MIB} MiB", limit=args.cgroup)
    crowd = ours(budget, name=f"{args.models} models")
    cases: list[tuple[tuple[Path, ...], str, Contender]] = [
        (two, "cold", free),
        (two, "warm", free),
        (many, "cold", crowd),
    ]
    if _has_cgroups(args.cgroup):
        cases.append((two, "cold", caged))
    records: list[Record] = []
    for models, state, contender in cases:
        bench = Bench(Job(models, (1.0,) * len(models), KINDS[args.dtype].torch_name), folder)
        run_state(bench, 1, state, [contender])
        records += bench.records
    return records


def _has_cgroups(limit: int) -> bool:
    try:
        with memory_cgroup(limit):
            return True
    except CgroupUnavailable as error:
        print(f"no run in a cgroup: {error}", file=sys.stderr)
        return False


def judge(records: list[Record], memory: int, models: int) -> list[str]:
    """What is wrong, a line each; empty when every promise was kept."""
    wrong = [f"{r.name}, {r.state}: {r.failure}" for r in records if r.failure]
    for record in (record for record in records if not record.failure):
        if record.anon is None:
            wrong.append(f"{record.name}: this system does not tell a process's anonymous memory")
        elif record.anon >= memory:
            peak = mebibytes(record.anon)
            wrong.append(f"{record.name}, {record.state}: {peak} MiB, over the {memory // MIB}")
        if record.wrong:
            wrong.append(f"{record.name}, {record.state}: {record.wrong:.4%} wrong elements")
    peaks = {r.name: r.anon for r in records if r.state == "cold" and not r.failure}
    few, many = peaks.get("2 models"), peaks.get(f"{models} models")
    if few and many and many > SAME * few:
        wrong.append(f"{models} models peak at {many / few:.2f} × the memory of 2")
    return wrong


def show(records: list[Record], args: argparse.Namespace) -> None:
    largest = args.largest / 1e9
    title = (
        f"models of {args.size / 1e9:g} GB, a tensor of ≥ {largest:g} GB, --memory {args.memory}"
    )
    table = Table("", "cache", "peak anonymous MiB", "peak RSS MiB", "seconds", title=title)
    for record in (record for record in records if not record.failure):
        memory = mebibytes(record.anon), mebibytes(record.rss)
        table.add_row(record.name, record.state, *memory, f"{record.wall:.2f}")
    wide_console().print(table)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, default="4GB", help="bytes of each model")
    parser.add_argument("--largest", type=parse_size, default="1GB", help="of the largest tensor")
    parser.add_argument("--memory", default="512MiB", help="the budget that is given")
    parser.add_argument("--cgroup", type=parse_size, default="768MiB", help="the cgroup's limit")
    parser.add_argument("--models", type=int, default=8, help="how many against two")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--dtype", choices=KINDS, default="bf16")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    add_workdir_option(parser)
    return parser.parse_args()


def main() -> None:
    args = options()
    with workspace(args.workdir, 3 * args.size) as folder:
        facts = machine.describe(folder)
        records = measure_all(args, folder)
    show(records, args)
    wrong = judge(records, parse_size(args.memory), args.models)
    if args.json:
        result = {"machine": facts, "runs": [asdict(r) for r in records], "wrong": wrong}
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(wrong) or f"every peak is under {args.memory}, as promised")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
