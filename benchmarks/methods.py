"""The merge methods: ours, mergekit and the floor, one recipe file for all, in one run.

    python -m benchmarks.methods                                # 3 × 2.4 GB (1.2B parameters)
    python -m benchmarks.methods --size 200MB --methods ties slerp --rounds 1
    python -m benchmarks.methods --big                          # a tensor of 1 GB in 512 MiB

A base and two fine-tunes of it, 1 % away, all in bf16, with an embedding of 500 MB, merged by the
recipes of `benchmarks.recipes`: `streammerge merge RECIPE.yml --memory 1GiB` beside `mergekit-yaml
RECIPE.yml`. The floor reads the same models as often as the method's plan does, its measuring
passes and then once more, and writes one: bytes × passes. Where the memory of the machine holds the
inputs, what is read again comes from the page cache, for the floor by `buffered` and for ours.

Rounds, states of the cache, order and clocks are those of `benchmarks.bench`. mergekit takes many
times as long as the others, so it has rounds of its own (`--peer-rounds`), interleaved with them.

`--big` is about memory alone: ours, one tensor far larger than the budget. Exit status 1 where a
peak of anonymous memory is over what was promised.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import floor, machine, peers
from benchmarks.bench import Bench, run_state
from benchmarks.contenders import LOG, STATES, Contender, start_up, start_ups
from benchmarks.data import make_checkpoint
from benchmarks.methods_report import FLOOR, PEER, Comparison, name_of
from benchmarks.pagecache import total_bytes
from benchmarks.peers import Job
from benchmarks.recipes import METHODS, Method
from benchmarks.report import OURS, wide_console
from benchmarks.units import add_workdir_option, gigabytes, parse_size, workspace
from streammerge import api

_DISTANCE = 0.01
_BIG = {"size": 1_500_000_000, "largest": 1_000_000_000, "memory": "512MiB"}
_BIG_METHODS = ("slerp", "ties")


def make_models(folder: Path, size: int, largest: int, shards: int) -> tuple[Path, ...]:
    """A base and two fine-tunes of it."""
    LOG.print(f"making 3 × {gigabytes(size)} of random weights …")
    return tuple(
        make_checkpoint(
            folder / name, size, shards=shards, largest=largest, seed=seed, distance=distance
        )
        for seed, (name, distance) in enumerate(
            (("base", 0.0), ("tuned_1", _DISTANCE), ("tuned_2", _DISTANCE))
        )
    )


def ours(method: Method, recipe: Path, memory: str) -> Contender:
    """`streammerge merge` with a memory budget."""

    def command(job: Job, out: Path) -> list[str]:
        program = [sys.executable, "-m", "streammerge", "merge", str(recipe), "-o", str(out)]
        return [*program, "--memory", memory, "--quiet", "--json"]

    return Contender(name_of(OURS, method.name), command, merges=False)


def mergekit(method: Method, recipe: Path, program: Path) -> Contender:
    """`mergekit-yaml`, without the extras that ours is not asked for."""

    def command(job: Job, out: Path) -> list[str]:
        options = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
        return [str(program), str(recipe), str(out), *options]

    return Contender(name_of(PEER, method.name), command, merges=False)


def floors(method: Method, models: Sequence[Path], times: int) -> list[Contender]:
    """Every way to read the method's models so many times and to write one."""

    def by(mode: str) -> Contender:
        def command(job: Job, out: Path) -> list[str]:
            program = [sys.executable, "-m", "benchmarks.floor", *map(str, models)]
            return [*program, "--out", str(out), "--mode", mode, "--times", str(times)]

        states = ("cold",) if mode == "direct" else STATES if mode == "buffered" else ("warm",)
        return Contender(name_of(FLOOR, method.name, mode), command, states, merges=False)

    return [by(mode) for mode in floor.MODES]


def times_read(recipe: Path, out: Path) -> int:
    """How often the merge of a recipe reads its models at most, as its plan says."""
    return 1 + max(step.passes for step in api.plan_merge(recipe, out).steps)


def everybody(args: argparse.Namespace, folder: Path, job: Job) -> list[Contender]:
    """Ours, the floors and mergekit, for each method; and what starting up takes."""
    found: list[Contender] = []
    program = None
    if args.peer_rounds:
        try:
            program = peers.install_mergekit()
            found.append(start_up("mergekit-yaml --help", [str(program), "--help"], "warm"))
        except peers.PeerUnavailable as error:
            LOG.print(f"left out: {error}")
    for name in args.methods:
        method = METHODS[name]
        recipe = method.write(folder, job.models)
        found.append(ours(method, recipe, args.memory))
        if not args.big:
            times = times_read(recipe, folder / "out")
            found += floors(method, job.models[: method.models], times)
        if program:
            found.append(mergekit(method, recipe, program))
    if not args.big:
        found += start_ups()
    return found


def run_all(bench: Bench, chosen: Sequence[Contender], args: argparse.Namespace) -> None:
    """All rounds, or as many as fit the time; mergekit in the first of them."""
    states, start = list(args.states), time.monotonic()
    for number in range(1, args.rounds + 1):
        if time.monotonic() - start > args.minutes * 60:
            LOG.print(f"{number - 1} of {args.rounds} rounds fit {args.minutes:g} minutes")
            return
        with_peer = number <= args.peer_rounds
        now = [one for one in chosen if with_peer or not one.name.startswith(PEER)]
        states = [state for state in states if run_state(bench, number, state, now)]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, help="bytes of each model (default: 2.4GB)")
    parser.add_argument(
        "--largest", type=parse_size, help="least size of the largest tensor (default: 500MB)"
    )
    parser.add_argument("--memory", help="the budget of ours (default: 1GiB)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD")
    parser.add_argument("--shards", type=int, default=2, help="files of each model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=1, help="rounds that mergekit is in")
    parser.add_argument("--states", nargs="+", choices=STATES, default=STATES)
    parser.add_argument("--minutes", type=float, default=90, help="start no round beyond this")
    parser.add_argument("--big", action="store_true", help="memory alone, one very large tensor")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    add_workdir_option(parser)
    args = parser.parse_args()
    if args.big:
        args.rounds, args.peer_rounds = 1, 0
        args.methods = args.methods or list(_BIG_METHODS)
    defaults = _BIG if args.big else {"size": 2_400_000_000, "memory": "1GiB"}
    for key, value in defaults.items():
        setattr(args, key, getattr(args, key) or value)
    # A smaller model has a smaller embedding, of the same share.
    args.largest = args.largest or args.size * 5 // 24
    args.methods = args.methods or list(METHODS)
    return args


def main() -> None:
    args = options()
    with workspace(args.workdir, 4 * args.size) as folder:
        models = make_models(folder, args.size, args.largest, args.shards)
        job = Job(models, (1.0,) * len(models), "bfloat16")
        bench = Bench(job, folder)
        facts = machine.describe(folder)
        run_all(bench, everybody(args, folder, job), args)
        nbytes = total_bytes(models[:1])
    comparison = Comparison(facts, nbytes, args.memory, tuple(args.methods), bench.records)
    comparison.print(wide_console())
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"methods{'-big' if args.big else ''}-{args.size / 1e9:g}GB.json"
    runs = {"runs": [asdict(record) for record in bench.records]}
    path.write_text(json.dumps(comparison.as_json() | runs, indent=2) + "\n")
    print(f"written: {path}")
    sys.exit(0 if comparison.within_budget() else 1)


if __name__ == "__main__":
    main()
