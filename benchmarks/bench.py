"""Ours, the floor, mergekit, a naive loop and cp: the same merge, in one run, cold and warm.

    python -m benchmarks.bench                                  # 2 × 2 GB, 3 rounds
    python -m benchmarks.bench --size 4GB --models 3 --weights 5 3 2
    python -m benchmarks.bench --size 1GB --skip mergekit --with "--io buffered"

Everybody runs once per round in a new order, so that a slow minute of a shared machine hits all
alike; the table has medians and, beside them, the fastest and the slowest round. Cold means that
the page cache was emptied (as root of everything, else of the inputs), warm that all inputs lie in
it: both are checked before the clock starts. A time ends with the process; what a peer leaves in
the page cache for the kernel to write stands beside it as "on disk". The ratios to peers leave that
out, in the peers' favour; the ratio to the floor has it in.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from benchmarks import machine, plot
from benchmarks.cgroup import Group, memory_cgroup
from benchmarks.contenders import LOG, STATES, Contender, everybody
from benchmarks.data import KINDS, make_checkpoint
from benchmarks.measure import Run, measure
from benchmarks.outputs import wrong_elements
from benchmarks.pagecache import (
    ColdUnavailable,
    WarmUnavailable,
    cached_bytes,
    make_cold,
    make_warm,
    total_bytes,
)
from benchmarks.peers import Job
from benchmarks.report import Record, Report, wide_console
from benchmarks.units import add_workdir_option, gigabytes, parse_size, workspace


class Bench:
    """Runs everybody in turn and keeps what was measured."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.out = job, folder / "out"
        self.records: list[Record] = []
        self.given_up: set[tuple[str, str]] = set()

    def round(self, number: int, state: str, chosen: list[Contender]) -> None:
        order = [one for one in chosen if state in one.states]
        random.Random(f"{state} {number}").shuffle(order)
        for one in order:
            if (one.name, state) in self.given_up:
                continue
            record = self._measure(one, number, state)
            self.records.append(record)
            if record.failure:
                self.given_up.add((one.name, state))
            said = record.failure or f"{record.wall:.2f} s"
            LOG.print(f"round {number} {state} {one.name}: {said}", markup=False)

    def _measure(self, one: Contender, number: int, state: str) -> Record:
        self._clean()
        make_cold(self.job.models) if state == "cold" else make_warm(self.job.models)
        limit = one.memory_limit
        with memory_cgroup(limit) if limit else nullcontext(None) as group:
            run = self._run(one, group)
        record = Record.of(one.name, state, number, run)
        if state == "cold":
            record = replace(record, cached=self._cached())
        if one.merges and number == 1 and not run.failure:
            wrong, seen = wrong_elements(self.out, self.job.models, self.job.weights)
            record = replace(record, wrong=wrong / seen)
        self._clean()
        return record

    def _run(self, one: Contender, group: Group | None) -> Run:
        command = one.command(self.job, self.out)
        run = measure(group.wrap(command) if group else command, output=self.out)
        if one.name.startswith("floor") and not run.failure:
            # Its own clock starts after Python has: a floor has no interpreter to load.
            run = replace(run, wall=json.loads(run.stdout)["seconds"])
        return run

    def _cached(self) -> int | None:
        outputs = [self.out] if self.out.exists() else []
        return cached_bytes([*self.job.models, *outputs])

    def _clean(self) -> None:
        if self.out.is_dir():
            shutil.rmtree(self.out)
        self.out.unlink(missing_ok=True)


def run_state(bench: Bench, number: int, state: str, chosen: list[Contender]) -> bool:
    """One round in one state of the cache; False where the machine cannot be brought into it."""
    try:
        bench.round(number, state, chosen)
    except (ColdUnavailable, WarmUnavailable) as error:
        LOG.print(f"no {state} runs: {error}")
        return False
    return True


def run_rounds(bench: Bench, chosen: list[Contender], rounds: int, minutes: float) -> None:
    """All rounds, or as many as fit the time; cold and warm in every round."""
    states, start = list(STATES), time.monotonic()
    for number in range(1, rounds + 1):
        if number > 1 and (time.monotonic() - start) * number / (number - 1) > minutes * 60:
            LOG.print(f"{number - 1} of {rounds} rounds fit {minutes:g} minutes")
            return
        states = [state for state in states if run_state(bench, number, state, chosen)]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, default="2GB", help="bytes of each model")
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--weights", type=float, nargs="+", help="one a model (default: equal)")
    parser.add_argument("--shards", type=int, default=2, help="files of each model")
    parser.add_argument("--dtype", choices=KINDS, default="bf16")
    parser.add_argument("--largest", type=parse_size, help="least size of the largest tensor")
    parser.add_argument("--unrelated", action="store_true", help="not fine-tunes of one base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="start no round beyond this")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="OPTIONS")
    parser.add_argument("--skip", nargs="+", default=[], help="words in the names to leave out")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    add_workdir_option(parser)
    args = parser.parse_args()
    args.weights = args.weights or [1.0] * args.models
    if len(args.weights) != args.models:
        parser.error(f"{len(args.weights)} weights for {args.models} models")
    return args


def main() -> None:
    args = options()
    chosen = everybody(args.extra, args.skip)
    with workspace(args.workdir, (args.models + 1) * args.size) as folder:
        LOG.print(f"making {args.models} × {gigabytes(args.size)} of random weights …")
        layout = {"shards": args.shards, "dtype": args.dtype, "largest": args.largest}
        models = tuple(
            make_checkpoint(
                folder / f"model_{number}",
                args.size,
                seed=number,
                family=number if args.unrelated else 0,
                **layout,
            )
            for number in range(args.models)
        )
        job = Job(models, tuple(args.weights), KINDS[args.dtype].torch_name)
        bench = Bench(job, folder)
        facts = machine.describe(folder)
        run_rounds(bench, chosen, args.rounds, args.minutes)
        read, written = total_bytes(models), total_bytes(models[:1])
    result = Report(facts, read, written, args.models, job.equal, bench.records)
    result.print(wide_console())
    args.results.mkdir(parents=True, exist_ok=True)
    name = f"bench-{args.models}x{args.size / 1e9:g}GB-{'equal' if job.equal else 'weighted'}"
    path = args.results / f"{name}.json"
    path.write_text(json.dumps(result.as_json() | {"options": _plain(args)}, indent=2) + "\n")
    plot.draw(result, args.results / f"{name}.png")
    print(f"written: {path} and the plot beside it")


def _plain(args: argparse.Namespace) -> dict[str, object]:
    # Without the folders: they say nothing about the figures.
    return {key: value for key, value in vars(args).items() if not isinstance(value, Path)}


if __name__ == "__main__":
    main()
