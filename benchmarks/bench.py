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
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks import floor, machine, peers, plot
from benchmarks.cgroup import CgroupUnavailable, Group, memory_cgroup
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
from benchmarks.report import OURS, Record, Report
from benchmarks.units import MIB, add_workdir_option, gigabytes, parse_size, workspace

STATES = ("cold", "warm")
CGROUP_LIMIT = 768 * MIB
SMALL_BUDGET = "--memory 512MiB"
_LOG = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class Contender:
    """Somebody to measure: how to call it, and what is special about it."""

    name: str
    command: Callable[[Job, Path], list[str]]
    states: tuple[str, ...] = STATES
    merges: bool = True  # its output is a checkpoint whose values can be checked
    memory_limit: int | None = None


def ours_command(job: Job, out: Path, options: str = "") -> list[str]:
    command = [sys.executable, "-m", "streammerge", "average", *map(str, job.models)]
    if not job.equal:
        command += [f"--weight={weight}" for weight in job.weights]
    return [*command, "-o", str(out), "--quiet", "--json", *shlex.split(options)]


def ours(options: str = "", *, name: str | None = None, limit: int | None = None) -> Contender:
    def command(job: Job, out: Path) -> list[str]:
        return ours_command(job, out, options)

    return Contender(name or f"{OURS} {options}".strip(), command, memory_limit=limit)


def floor_by(mode: str, *states: str) -> Contender:
    def command(job: Job, out: Path) -> list[str]:
        models = list(map(str, job.models))
        program = [sys.executable, "-m", "benchmarks.floor", *models]
        return [*program, "--out", str(out), "--mode", mode]

    return Contender(f"floor, {mode}", command, states, merges=False)


def contenders(extra: list[str], skip: list[str]) -> list[Contender]:
    """Everybody who can run here; the others are said with the reason."""
    cgroup = f"{OURS} in a {CGROUP_LIMIT // MIB} MiB cgroup"
    found = [
        *(floor_by(mode, "cold") for mode in ("direct", "buffered")),
        *(floor_by(mode, "warm") for mode in floor.MODES if mode != "direct"),
        ours(),
        ours(SMALL_BUDGET),
        ours(SMALL_BUDGET, name=cgroup, limit=CGROUP_LIMIT),
        *map(ours, extra),
        Contender("naive loop", peers.naive_command),
        Contender("cp", peers.cp_command, merges=False),
        start_up("import torch", [sys.executable, "-c", "import torch"]),
    ]
    if "mergekit" not in skip:
        found += _mergekit()
    try:
        with memory_cgroup(CGROUP_LIMIT):
            pass
    except CgroupUnavailable as error:
        _LOG.print(f"left out: {cgroup}: {error}")
        found = [one for one in found if one.memory_limit is None]
    return [one for one in found if not any(word in one.name for word in skip)]


def _mergekit() -> list[Contender]:
    try:
        program = peers.install_mergekit()
    except peers.PeerUnavailable as error:
        _LOG.print(f"left out: {error}")
        return []
    return [
        Contender("mergekit linear", lambda job, out: peers.mergekit_command(job, out, program)),
        start_up("mergekit-yaml --help", [str(program), "--help"], "warm"),
    ]


def start_up(name: str, command: list[str], *states: str) -> Contender:
    return Contender(name, lambda job, out: command, states or STATES, merges=False)


class Bench:
    """Runs everybody in turn and keeps what was measured."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.out = job, folder / "out"
        self.records: list[Record] = []
        self.given_up: set[tuple[str, str]] = set()

    def round(self, number: int, state: str, everybody: list[Contender]) -> None:
        order = [one for one in everybody if state in one.states]
        random.Random(f"{state} {number}").shuffle(order)
        for one in order:
            if (one.name, state) in self.given_up:
                continue
            record = self._measure(one, number, state)
            self.records.append(record)
            if record.failure:
                self.given_up.add((one.name, state))
            said = record.failure or f"{record.wall:.2f} s"
            _LOG.print(f"round {number} {state} {one.name}: {said}", markup=False)

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


def run_state(bench: Bench, number: int, state: str, everybody: list[Contender]) -> bool:
    """One round in one state of the cache; False where the machine cannot be brought into it."""
    try:
        bench.round(number, state, everybody)
    except (ColdUnavailable, WarmUnavailable) as error:
        _LOG.print(f"no {state} runs: {error}")
        return False
    return True


def run_rounds(bench: Bench, everybody: list[Contender], rounds: int, minutes: float) -> None:
    """All rounds, or as many as fit the time; cold and warm in every round."""
    states, start = list(STATES), time.monotonic()
    for number in range(1, rounds + 1):
        if number > 1 and (time.monotonic() - start) * number / (number - 1) > minutes * 60:
            _LOG.print(f"{number - 1} of {rounds} rounds fit {minutes:g} minutes")
            return
        states = [state for state in states if run_state(bench, number, state, everybody)]


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
    everybody = contenders(args.extra, args.skip)
    with workspace(args.workdir, (args.models + 1) * args.size) as folder:
        _LOG.print(f"making {args.models} × {gigabytes(args.size)} of random weights …")
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
        run_rounds(bench, everybody, args.rounds, args.minutes)
        read, written = total_bytes(models), total_bytes(models[:1])
    result = Report(facts, read, written, args.models, job.equal, bench.records)
    result.print(wide_console())
    args.results.mkdir(parents=True, exist_ok=True)
    name = f"bench-{args.models}x{args.size / 1e9:g}GB-{'equal' if job.equal else 'weighted'}"
    path = args.results / f"{name}.json"
    path.write_text(json.dumps(result.as_json() | {"options": _plain(args)}, indent=2) + "\n")
    plot.draw(result, args.results / f"{name}.png")
    print(f"written: {path} and the plot beside it")


def wide_console() -> Console:
    """Stdout, wide enough for the tables also where it is a file."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def _plain(args: argparse.Namespace) -> dict[str, object]:
    # Without the folders: they say nothing about the figures.
    return {key: value for key, value in vars(args).items() if not isinstance(value, Path)}


if __name__ == "__main__":
    main()
