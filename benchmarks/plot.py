"""One plain plot of a benchmark: a bar for everybody, cold and warm, and the floor as a line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report import OURS, START_UP, Report
from benchmarks.units import gigabytes

_LEFT_OUT = ("floor", *START_UP)


def draw(report: Report, path: Path) -> None:
    """Write the plot to `path`; its suffix (.png, .svg) says the format."""
    # By name: `make check` type-checks this file also where the bench extra is not installed.
    matplotlib = import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    states = [state for state in ("cold", "warm") if report.names(state)]
    if not states:
        return
    rows = max(len(_shown(report, state)) for state in states)
    size = (5.2 * len(states), 1.2 + 0.36 * rows)
    figure, axes = pyplot.subplots(1, len(states), figsize=size, squeeze=False)
    for state, axis in zip(states, axes[0], strict=True):
        _panel(report, state, axis)
    read, written = gigabytes(report.read), gigabytes(report.written)
    figure.suptitle(f"{report.models} models, {read} read, {written} written", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _shown(report: Report, state: str) -> list[str]:
    names = [name for name in report.names(state) if not name.startswith(_LEFT_OUT)]
    return [name for name in names if "cgroup" not in name]  # the same bar once more


def _panel(report: Report, state: str, axis: Any) -> None:
    names = _shown(report, state)[::-1]  # the fastest on top
    walls = [report.wall(name, state) for name in names]
    middle = [wall.median for wall in walls]
    noise = [[w.median - w.low for w in walls], [w.high - w.median for w in walls]]
    colours = ["#2a6f97" if name.startswith(OURS) else "#b8b8b8" for name in names]
    bars = axis.barh(names, middle, xerr=noise, color=colours, error_kw={"lw": 0.8, "capsize": 2})
    axis.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
    axis.margins(x=0.12)
    floor = report.floor(state)
    if floor:
        axis.axvline(floor.median, color="#c1121f", lw=1, ls="--", label="floor")
        axis.legend(fontsize=8, frameon=False, loc="upper right")
    axis.set_title(state, fontsize=9)
    axis.set_xlabel("seconds (median; whiskers: fastest and slowest)", fontsize=8)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
