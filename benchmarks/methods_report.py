"""What the runs of `benchmarks.methods` say: a table for each state of the cache, and the goals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import STATES
from benchmarks.measure import Spread
from benchmarks.recipes import METHODS
from benchmarks.report import OURS, OWN_START, START_UP, Goal, Record, Report, disturbance
from benchmarks.units import gigabytes, mebibytes, parse_size

FLOOR, PEER = "floor", "mergekit"
_SEPARATOR = " · "


def name_of(who: str, method: str, how: str = "") -> str:
    """The name of a contender in the records."""
    return _SEPARATOR.join((f"{who}, {how}" if how else who, method))


@dataclass(frozen=True)
class Comparison:
    """All records of a run.

    Attributes:
        facts: what was measured on.
        nbytes: of one model.
        memory: the budget of ours.
        methods: in the order of the table.
        records: as `benchmarks.bench.Bench` keeps them.
    """

    facts: dict[str, str | int | float]
    nbytes: int
    memory: str
    methods: tuple[str, ...]
    records: list[Record]

    def of(self, method: str) -> Report:
        """The records of one method, and the start-up times, under names without the method."""
        found = []
        for record in self.records:
            who, _, which = record.name.partition(_SEPARATOR)
            if which == method or who in START_UP:
                found.append(replace(record, name=who))
        models = METHODS[method].models
        return Report(self.facts, models * self.nbytes, self.nbytes, models, False, found)

    def faster(self, method: str, state: str) -> float | None:
        """How many times as long mergekit takes; what it leaves to be written does not count."""
        report = self.of(method)
        if not (report.has(PEER, state) and report.has(OURS, state)):
            return None
        return report.wall(PEER, state).median / report.wall(OURS, state).median

    def within_budget(self) -> bool:
        """Whether every merge of ours ended, within its budget."""
        ours = [record for record in self.records if record.name.startswith(OURS)]
        budget = parse_size(self.memory)
        return all(not r.failure and r.anon is not None and r.anon <= budget for r in ours)

    def goals(self) -> list[Goal]:
        """What was promised: the factor over mergekit, and the memory."""
        found = []
        for state in STATES:
            for method in self.methods:
                least, ratio = METHODS[method].faster, self.faster(method, state)
                if least and ratio:
                    what = f"{state}: {method}, mergekit / ours"
                    found.append(Goal(what, f"{ratio:.1f}", f"≥ {least:g}", ratio >= least))
        peaks = [r.anon for r in self.records if r.name.startswith(OURS) and r.anon is not None]
        if peaks:
            what, met = "peak anonymous memory, all of ours", max(peaks) <= parse_size(self.memory)
            found.append(Goal(what, f"{mebibytes(max(peaks))} MiB", f"≤ {self.memory}", met))
        return found

    def _states(self) -> list[str]:
        return [s for s in STATES if any(record.state == s for record in self.records)]

    # ---- the tables

    def print(self, console: Console) -> None:
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        console.print(f"[dim]{facts}[/]")
        for state in self._states():
            console.print(self._table(state))
        start = self.of(self.methods[0])
        for name in START_UP:
            spreads = [f"{s} {start.wall(name, s)}" for s in STATES if start.has(name, s)]
            if spreads:
                console.print(f"start-up alone, {name}: {', '.join(spreads)} s")
        for record in self.records:
            if record.failure:
                console.print(f"{record.name}, {record.state}: {record.failure}", markup=False)
        goals = Table("goal", "measured", "wanted", "", title="goals")
        for goal in self.goals():
            goals.add_row(goal.what, goal.measured, goal.goal, "met" if goal.met else "MISSED")
        console.print(goals)
        console.print(disturbance(self.records))

    def _table(self, state: str) -> Table:
        title = f"{state}: models of {gigabytes(self.nbytes)}, ours with --memory {self.memory}; "
        table = Table(title=title + "medians (min–max) of seconds, CPU seconds, peaks of memory")
        table.add_column("method", no_wrap=True)
        for column in ("floor", "ours", "× floor", "less start", PEER, "ours is × faster"):
            table.add_column(column, justify="right")
        for column in ("CPU, ours", f"CPU, {PEER}", "anon MiB, ours", f"anon MiB, {PEER}"):
            table.add_column(column, justify="right")
        for method in self.methods:
            table.add_row(*self._row(method, state))
        return table

    def _row(self, method: str, state: str) -> list[str]:
        report, ratio = self.of(method), self.faster(method, state)
        walls = {who: self._spread(report, who, state) for who in (OURS, PEER)}
        return [
            method,
            str(report.floor(state) or "–"),
            walls[OURS],
            *self._times_floor(report, state),
            walls[PEER],
            f"{ratio:.1f}" if ratio else "–",
            *(self._cpu(report, who, state) for who in (OURS, PEER)),
            *(mebibytes(report.peak(who, state)) for who in (OURS, PEER)),
        ]

    def _times_floor(self, report: Report, state: str) -> tuple[str, str]:
        """Ours over the floor; and the same without what its own start takes."""
        floor = report.floor(state)
        if not (floor and report.has(OURS, state)):
            return "–", "–"
        ours, start = report.durable(OURS, state).median, 0.0
        if report.has(OWN_START, state):
            start = report.wall(OWN_START, state).median
        return f"{ours / floor.median:.2f}", f"{(ours - start) / floor.median:.2f}"

    def _spread(self, report: Report, who: str, state: str) -> str:
        return str(report.wall(who, state)) if report.has(who, state) else "–"

    def _cpu(self, report: Report, who: str, state: str) -> str:
        if not report.has(who, state):
            return "–"
        return f"{report.spread(who, state, lambda record: record.cpu).median:.1f}"

    def as_json(self) -> dict[str, Any]:
        """Figures by state and method, and the goals."""
        return {
            "machine": self.facts,
            "bytes of a model": self.nbytes,
            "memory": self.memory,
            "medians": {
                state: {method: self._figures(method, state) for method in self.methods}
                for state in self._states()
            },
            "goals": [asdict(goal) for goal in self.goals()],
        }

    def _figures(self, method: str, state: str) -> dict[str, Any]:
        report = self.of(method)
        found: dict[str, Any] = {"ours is × faster": self.faster(method, state)}
        found[FLOOR] = _plain(report.floor(state))
        for who in (OURS, PEER):
            if report.has(who, state):
                found[who] = {
                    "seconds": _plain(report.wall(who, state)),
                    "cpu": _plain(report.spread(who, state, lambda record: record.cpu)),
                    "anon": report.peak(who, state),
                }
        return found


def _plain(one: Spread | None) -> dict[str, float] | None:
    return asdict(one) if one else None
