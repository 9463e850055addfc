"""Run a command and measure it: wall and CPU time, peak memory of its own, what ran beside it.

    run = measure(["python", "-m", "streammerge", "average", "a", "b", "-o", "out"])
    print(run.wall, run.cpu, run.anon)

Anonymous memory is what a process allocates; the rest of its RSS is page cache that it maps and
that the kernel takes back at will. The kernel keeps no peak of the former, so it is sampled.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.pagecache import files_below

INTERVAL = 0.005  # seconds between two samples of memory
_CHILDREN_EVERY = 20  # samples between two looks for child processes: they come and go slowly
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """One command, measured. Memory is in bytes, None where /proc does not tell it."""

    wall: float  # until the process has ended
    sync: float  # more until its output is on the disk
    user: float
    system: float
    anon: int | None  # peak anonymous RSS, children included
    rss: int | None  # peak RSS, mapped files included
    others: float  # cores that anybody else (and the kernel's writeback) kept busy meanwhile
    status: int  # exit status; negative: the signal that killed it
    stdout: str
    stderr: str

    @property
    def cpu(self) -> float:
        return self.user + self.system

    @property
    def durable(self) -> float:
        return self.wall + self.sync

    @property
    def failure(self) -> str | None:
        """Why this run does not count, or None."""
        if self.status == 0:
            return None
        lines = self.stderr.strip().splitlines() or self.stdout.strip().splitlines()
        said = f": {lines[-1][:200]}" if lines else ""
        return f"killed by signal {-self.status}" if self.status < 0 else f"failed{said}"


def measure(
    command: Sequence[str],
    *,
    output: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 1800,
) -> Run:
    """Run `command` to its end; `output` (file or folder) is then synced and timed apart."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        busy, start = _busy_seconds(), time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **(env or {})},
        )
        watch = _Watch(process)
        watch.sample_until_end(timeout)
        wall, usage = watch.ended - start, watch.usage
        cpu = usage.ru_utime + usage.ru_stime
        others = max(0.0, _busy_seconds() - busy - cpu) / wall
        sync = _sync(output) if output is not None and output.exists() else 0.0
        out.seek(0)
        err.seek(0)
        return Run(
            wall=wall,
            sync=sync,
            user=usage.ru_utime,
            system=usage.ru_stime,
            anon=watch.anon,
            rss=watch.rss,
            others=others,
            status=process.returncode,
            stdout=out.read().decode(errors="replace"),
            stderr=err.read().decode(errors="replace"),
        )


class _Watch:
    """Samples a process from one thread while another waits for its end."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.anon: int | None = None
        self.rss: int | None = None
        self._done = threading.Event()
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        _, status, self.usage = os.wait4(self.process.pid, 0)  # unlike wait(): with its CPU time
        self.ended = time.perf_counter()
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self._done.set()

    def sample_until_end(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        pids = [self.process.pid]
        count = 0
        try:
            while not self._done.wait(INTERVAL):
                if count % _CHILDREN_EVERY == 0:
                    pids = _family(self.process.pid)
                count += 1
                self._sample(pids)
                if time.monotonic() > deadline:
                    os.kill(self.process.pid, 9)
        except BaseException:  # Ctrl-C: leave nothing running behind
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, 9)
            raise
        finally:
            self._waiter.join()

    def _sample(self, pids: list[int]) -> None:
        sizes = [size for size in map(_memory, pids) if size is not None]
        if sizes:
            self.anon = max(self.anon or 0, sum(anon for anon, _, _ in sizes))
            now, most = sum(rss for _, rss, _ in sizes), max(peak for _, _, peak in sizes)
            self.rss = max(self.rss or 0, now, most)


def _memory(pid: int) -> tuple[int, int, int] | None:
    """Anonymous RSS, RSS and the kernel's own peak of RSS, in bytes."""
    values = {"RssAnon": 0, "VmRSS": 0, "VmHWM": 0}
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key in values:
                    values[key] = int(value.split()[0]) * 1024
    except (OSError, ValueError):
        return None
    return values["RssAnon"], values["VmRSS"], values["VmHWM"]


def _family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for parent in found:  # grows while we walk it
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def _busy_seconds() -> float:
    """CPU seconds that all processes of this machine have used so far."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    return (user + nice + system + irq + softirq) / _TICKS


def _sync(output: Path) -> float:
    start = time.perf_counter()
    for file in files_below([output]):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Spread:
    """A median and how far the rounds lay apart: no figure without its noise."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def spread(values: Iterable[float]) -> Spread:
    numbers = list(values)
    return Spread(statistics.median(numbers), min(numbers), max(numbers))
