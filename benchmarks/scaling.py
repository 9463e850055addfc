"""Time and memory as the work grows and the budget stays: more models, larger ones, larger tensors.

    python -m benchmarks.scaling                         # 500 MB models, up to 16 of them
    python -m benchmarks.scaling --size 1GB --models 2 8 --rounds 3 --state warm

Time should grow with the bytes and memory not at all. A disk reads and writes at different speeds,
so "with the bytes" has two measures: seconds for each GB moved, and the ratio to the floor, which
is measured beside every case. The start of Python and streammerge, the same for all, is taken off.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from benchmarks import floor, machine
from benchmarks.bench import Bench, run_state
from benchmarks.contenders import STATES, floor_by, ours, start_up
from benchmarks.data import KINDS, make_checkpoint
from benchmarks.measure import Spread
from benchmarks.pagecache import total_bytes
from benchmarks.peers import Job
from benchmarks.report import OWN_START, Report, wide_console
from benchmarks.units import add_workdir_option, gigabytes, mebibytes, parse_size, workspace


@dataclass(frozen=True)
class Case:
    """One point of a series."""

    series: str
    label: str
    models: int
    size: int
    largest: int | None = None


@dataclass(frozen=True)
class Point:
    """What was measured at it."""

    case: Case
    moved: int  # bytes read and written
    wall: Spread
    floor: float | None
    start_up: float
    anon: int | None

    @property
    def per_gb(self) -> float:
        return (self.wall.median - self.start_up) / self.moved * 1e9

    @property
    def over_floor(self) -> float | None:
        return (self.wall.median - self.start_up) / self.floor if self.floor else None


def cases(args: argparse.Namespace) -> list[Case]:
    size, tensors = args.size, [args.size * share // 16 for share in (1, 2, 4, 8)]
    return [
        *(Case("models", str(count), count, size) for count in args.models),
        *(Case("size", f"× {factor}", 2, size * factor) for factor in args.factors),
        *(Case("largest tensor", gigabytes(nbytes), 2, size, nbytes) for nbytes in tensors),
    ]


def measure_case(case: Case, args: argparse.Namespace, folder: Path) -> Point:
    """Make the models, measure ours and the floor beside it, remove the models."""
    models = tuple(
        make_checkpoint(
            folder / f"model_{number}",
            case.size,
            shards=args.shards,
            dtype=args.dtype,
            largest=case.largest,
            seed=number,
        )
        for number in range(case.models)
    )
    modes = ("direct", "buffered") if args.state == "cold" else floor.MODES[1:]
    mine = ours(f"--memory {args.memory}")
    start = start_up(OWN_START, [sys.executable, "-c", OWN_START])
    everybody = [mine, start, *(floor_by(mode, args.state) for mode in modes)]
    bench = Bench(Job(models, (1.0,) * case.models, KINDS[args.dtype].torch_name), folder)
    for number in range(1, args.rounds + 1):
        run_state(bench, number, args.state, everybody)
    read, written = total_bytes(models), total_bytes(models[:1])
    report = Report({}, read, written, case.models, True, bench.records)
    for model in models:
        shutil.rmtree(model)
    if not report.has(mine.name, args.state):
        sys.exit(next(r.failure for r in bench.records if r.failure and r.name == mine.name))
    best = report.floor(args.state)
    return Point(
        case,
        read + written,
        report.wall(mine.name, args.state),
        best.median if best else None,
        report.wall(start.name, args.state).median,
        report.peak(mine.name, args.state),
    )


def show(points: list[Point], args: argparse.Namespace) -> None:
    title = f"{args.state}, --memory {args.memory}, models of {gigabytes(args.size)}"
    table = Table("", "moved", "seconds (min–max)", "s/GB moved*", "× floor*", title=title)
    table.add_column("peak anonymous MiB")
    for point in points:
        table.add_row(
            f"{point.case.series} {point.case.label}",
            gigabytes(point.moved),
            str(point.wall),
            f"{point.per_gb:.3f}",
            f"{point.over_floor:.2f}" if point.over_floor else "–",
            mebibytes(point.anon),
            end_section=point is points[-1]
            or points[points.index(point) + 1].case.series != point.case.series,
        )
    wide_console().print(table)
    start_ups = [point.start_up for point in points]
    low, high = min(start_ups), max(start_ups)
    print(
        f"* less the start of Python and streammerge, {low:.2f}–{high:.2f} s, measured in each case"
    )


def verdicts(points: list[Point]) -> list[str]:
    """How far each series is from proportional time and from flat memory, in one line each."""
    lines = []
    for series in dict.fromkeys(point.case.series for point in points):
        of = [point for point in points if point.case.series == series]
        rates, peaks = [p.per_gb for p in of], [p.anon for p in of if p.anon]
        over = [p.over_floor for p in of if p.over_floor]
        line = f"{series}: s/GB moved within {_range(rates)}"
        line += f", × floor within {_range(over)}" if over else ""
        lines.append(line + (f", peak memory within {_range(peaks)}" if peaks else ""))
    by_count = {p.case.models: p for p in points if p.case.series == "models"}
    if {2, 8} <= by_count.keys():
        time = by_count[8].per_gb / by_count[2].per_gb
        few, many = by_count[2].anon, by_count[8].anon
        memory = f", peak memory {many / few:.2f} ×" if few and many else ""
        lines.append(f"8 models against 2: time {time:.2f} × proportional to the bytes{memory}")
    return lines


def _range(values: list[float] | list[int]) -> str:
    return f"{(max(values) / min(values) - 1) * 100:.0f} %"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=parse_size, default="500MB", help="of the smallest model")
    parser.add_argument("--models", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 2, 4], help="of the size")
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--state", choices=STATES, default="cold")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--dtype", choices=KINDS, default="bf16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    add_workdir_option(parser)
    return parser.parse_args()


def main() -> None:
    args = options()
    needs = max((max(args.models) + 1) * args.size, 3 * max(args.factors) * args.size)
    with workspace(args.workdir, needs) as folder:
        facts = machine.describe(folder)
        points = [measure_case(case, args, folder) for case in cases(args)]
    show(points, args)
    lines = verdicts(points)
    print("\n".join(lines))
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / f"scaling-{args.state}.json"
    result = {"machine": facts, "points": [asdict(p) for p in points], "verdicts": lines}
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
