"""Who is measured: how to call ours, the floor, the peers, and what is special about each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import floor, peers
from benchmarks.cgroup import CgroupUnavailable, memory_cgroup
from benchmarks.peers import Job
from benchmarks.report import OURS, OWN_START
from benchmarks.units import MIB

STATES = ("cold", "warm")
CGROUP_LIMIT = 768 * MIB
SMALL_BUDGET = "--memory 512MiB"
LOG = Console(stderr=True, highlight=False)


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


def everybody(extra: list[str], skip: list[str]) -> list[Contender]:
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
        *start_ups(),
    ]
    if "mergekit" not in skip:
        found += _mergekit()
    try:
        with memory_cgroup(CGROUP_LIMIT):
            pass
    except CgroupUnavailable as error:
        LOG.print(f"left out: {cgroup}: {error}")
        found = [one for one in found if one.memory_limit is None]
    return [one for one in found if not any(word in one.name for word in skip)]


def _mergekit() -> list[Contender]:
    try:
        program = peers.install_mergekit()
    except peers.PeerUnavailable as error:
        LOG.print(f"left out: {error}")
        return []
    return [
        Contender("mergekit linear", lambda job, out: peers.mergekit_command(job, out, program)),
        start_up("mergekit-yaml --help", [str(program), "--help"], "warm"),
    ]


def start_ups() -> list[Contender]:
    """What ours takes to begin, and torch, which peers load and ours where a method needs it."""
    return [start_up(code, [sys.executable, "-c", code]) for code in (OWN_START, "import torch")]


def start_up(name: str, command: list[str], *states: str) -> Contender:
    return Contender(name, lambda job, out: command, states or STATES, merges=False)
