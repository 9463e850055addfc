"""What the runs of `benchmarks.bench` say: a table for each state of the cache, and the goals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Run, Spread, spread
from benchmarks.units import MIB, gigabytes, mebibytes

OURS = "streammerge"
OWN_START = "import streammerge.execute"
START_UP = ("import torch", "mergekit-yaml --help", OWN_START)  # given apart, not in the tables
_BUSY = 0.15  # cores taken by others above which a run is called disturbed


@dataclass(frozen=True)
class Record:
    """One run of one contender."""

    name: str
    state: str
    round: int
    wall: float
    sync: float
    cpu: float
    anon: int | None
    rss: int | None
    others: float
    failure: str | None
    cached: int | None = None  # bytes of inputs and output in the page cache after a cold run
    wrong: float | None = None  # share of the looked-at elements that are not the rounded mean

    @staticmethod
    def of(name: str, state: str, number: int, run: Run) -> Record:
        memory, times = (run.anon, run.rss), (run.wall, run.sync, run.cpu)
        return Record(name, state, number, *times, *memory, run.others, run.failure)


@dataclass(frozen=True)
class Goal:
    what: str
    measured: str
    goal: str
    met: bool


@dataclass(frozen=True)
class Report:
    facts: dict[str, str | int | float]
    read: int
    written: int
    models: int
    equal: bool
    records: list[Record]

    def names(self, state: str) -> list[str]:
        """Everybody who ran to the end, the fastest first."""
        names = {record.name for record in self.records if record.state == state}
        done = [name for name in names if self.runs(name, state)]
        return sorted(done, key=lambda name: self.wall(name, state).median)

    def runs(self, name: str, state: str) -> list[Record]:
        return [
            record
            for record in self.records
            if (record.name, record.state) == (name, state) and not record.failure
        ]

    def spread(self, name: str, state: str, of: Callable[[Record], float]) -> Spread:
        return spread(of(record) for record in self.runs(name, state))

    def wall(self, name: str, state: str) -> Spread:
        return self.spread(name, state, lambda record: record.wall)

    def durable(self, name: str, state: str) -> Spread:
        return self.spread(name, state, lambda record: record.wall + record.sync)

    def floor(self, state: str) -> Spread | None:
        """The best way of moving the bytes, by its median."""
        floors = [name for name in self.names(state) if name.startswith("floor")]
        return min((self.durable(name, state) for name in floors), key=_median, default=None)

    def peak(self, name: str, state: str) -> int | None:
        return max((r.anon for r in self.runs(name, state) if r.anon is not None), default=None)

    def has(self, name: str, state: str) -> bool:
        return bool(self.runs(name, state))

    # ---- the tables

    def print(self, console: Console) -> None:
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        console.print(f"[dim]{facts}[/]")
        for state in ("cold", "warm"):
            if self.names(state):
                console.print(self._table(state))
        for name in START_UP:
            spreads = [f"{s} {self.wall(name, s)}" for s in ("cold", "warm") if self.has(name, s)]
            if spreads:
                console.print(f"start-up alone, {name}: {', '.join(spreads)} s")
        for record in self.records:
            if record.failure:
                console.print(f"{record.name}, {record.state}: {record.failure}", markup=False)
        console.print(self._goal_table())
        console.print(disturbance(self.records))

    def _table(self, state: str) -> Table:
        title = f"{state}: {self.models} models, {gigabytes(self.read)} read, "
        table = Table(title=title + f"{gigabytes(self.written)} written; medians (min–max)")
        table.add_column("", no_wrap=True)
        for column in ("seconds", "on disk", "× floor", "ours is × faster", "CPU s/GB read"):
            table.add_column(column, justify="right")
        for column in ("anon MiB", "RSS MiB", "page cache MiB", "wrong elements"):
            table.add_column(column, justify="right")
        for name in (name for name in self.names(state) if name not in START_UP):
            table.add_row(*self._row(name, state), style="bold" if name == OURS else None)
        return table

    def _row(self, name: str, state: str) -> list[str]:
        runs, wall = self.runs(name, state), self.wall(name, state)
        durable, floor = self.durable(name, state), self.floor(state)
        ours = self.wall(OURS, state) if self.has(OURS, state) else None
        cpu = self.spread(name, state, lambda record: record.cpu / self.read * 1e9)
        rss = max((record.rss for record in runs if record.rss is not None), default=None)
        cached = [record.cached for record in runs if record.cached is not None]
        wrong = [record.wrong for record in runs if record.wrong is not None]
        return [
            name,
            str(wall),
            f"{durable.median:.2f}",
            f"{durable.median / floor.median:.2f}" if floor else "–",
            f"{wall.median / ours.median:.2f}" if ours else "–",
            f"{cpu.median:.2f}",
            mebibytes(self.peak(name, state)),
            mebibytes(rss),
            mebibytes(max(cached)) if cached else "–",
            f"{max(wrong):.4%}" if wrong else "–",
        ]

    # ---- the goals

    def goals(self) -> list[Goal]:
        found: list[Goal] = []
        for state in ("cold", "warm"):
            if self.has(OURS, state):
                found += self._speed_goals(state) + self._budget_goals(state)
        return found

    def _speed_goals(self, state: str) -> list[Goal]:
        ours, floor, found = self.durable(OURS, state).median, self.floor(state), []
        limit = 1.10 if state == "cold" else 1.20 if self.equal and self.models == 2 else 1.50
        if floor:
            found.append(_at_most(f"{state}: time / floor", ours / floor.median, limit))
            if self.has(OWN_START, state):
                less = (ours - self.wall(OWN_START, state).median) / floor.median
                found.append(_at_most(f"{state}: the same less its own start", less, limit))
        ours = self.wall(OURS, state).median
        for peer, least in (("naive loop", 2.5 if state == "cold" else 5), ("mergekit linear", 3)):
            if self.has(peer, state):
                ratio = self.wall(peer, state).median / ours
                goal = f"≥ {least:g}"
                found.append(Goal(f"{state}: {peer} / ours", f"{ratio:.2f}", goal, ratio >= least))
        return found

    def _budget_goals(self, state: str) -> list[Goal]:
        found, ours = [], self.wall(OURS, state).median
        small, group = f"{OURS} --memory 512MiB", f"{OURS} in a 768 MiB cgroup"
        for name, limit in ((small, 1.05), (group, 1.10)):
            if self.has(name, state):
                ratio = self.wall(name, state).median / ours
                found.append(_at_most(f"{state}: {name} / default", ratio, limit))
        peak, peers = self.peak(OURS, state), self.peak("mergekit linear", state)
        if peak and peers:
            found.append(_at_most(f"{state}: anonymous memory / mergekit's", peak / peers, 1 / 8))
        cpu = self.spread(OURS, state, lambda record: record.cpu).median
        digest = float(self.facts["sha256 s/GB"]) * self.written / 1e9
        less = (cpu - digest) / self.read * 1e9
        found.append(_at_most(f"{state}: CPU s/GB read, the digest apart", less, 0.6))
        cached = [r.cached for r in self.runs(OURS, state) if r.cached is not None]
        if cached:
            # Not zero: headers, indexes and side files are read through the cache.
            limit = max(1.0, (self.read + self.written) * 0.001 / MIB)
            found.append(_at_most(f"{state}: MiB left in the page cache", max(cached) / MIB, limit))
        return found

    def _goal_table(self) -> Table:
        table = Table("goal", "measured", "wanted", "", title="goals")
        for goal in self.goals():
            table.add_row(goal.what, goal.measured, goal.goal, "met" if goal.met else "MISSED")
        return table

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.facts,
            "bytes read": self.read,
            "bytes written": self.written,
            "medians": {
                state: {name: asdict(self.wall(name, state)) for name in self.names(state)}
                for state in ("cold", "warm")
            },
            "goals": [asdict(goal) for goal in self.goals()],
            "runs": [asdict(record) for record in self.records],
        }


def disturbance(records: list[Record]) -> str:
    """How many runs did not have the machine to themselves."""
    disturbed = sum(record.others > _BUSY for record in records)
    return (
        f"{disturbed} of {len(records)} runs had more than {_BUSY:g} cores taken by others (or by "
        "the kernel's writeback): the ranges say what that did."
    )


def _median(one: Spread) -> float:
    return one.median


def _at_most(what: str, value: float, limit: float) -> Goal:
    return Goal(what, f"{value:.2f}", f"≤ {limit:.3g}", value <= limit)


def wide_console() -> Console:
    """Stdout, wide enough for the tables also where it is a file."""
    return Console() if sys.stdout.isatty() else Console(width=160)
