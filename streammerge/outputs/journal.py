"""What an unfinished output holds already, so that the same command can go on with it.

The journal lies in the staging folder: the identity of the plan, and each shard that is durable
with its sha256. It is replaced as a whole, so a reader sees the old one or the new one. A lock
beside it keeps a second process out; the kernel drops the lock with the process that held it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streammerge.errors import OutputError, listing, printable
from streammerge.outputs import WrittenShard
from streammerge.outputs.shardfile import named, replace_file
from streammerge.plan import Plan

JOURNAL, LOCK = "journal.json", "lock"


class Journal:
    """The journal of one staging folder.

    Args:
        folder: the staging folder; it must exist for all but reading.

    Attributes:
        shards: those that are durable.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None
        self._identity: dict[str, Any] = {}
        self.shards: list[WrittenShard] = []

    def lock(self, label: str) -> None:
        """Keep other processes out of the folder until `release`, or until this process ends.

        Raises:
            OutputError: another process is writing there.
        """
        holder = self.try_lock()
        if holder:
            raise OutputError(
                f"another streammerge (process {printable(holder)}) is writing to {label}",
                "Wait until it is done, or choose another output.",
            )

    def try_lock(self) -> str:
        """Lock the folder unless another process has; return that one's number, else ""."""
        try:
            import fcntl
        except ImportError:  # Windows
            return ""
        self._lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 32).decode(errors="replace").strip() or "unknown"
            self.release()
            return holder
        with named(self._folder / LOCK):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return ""

    def release(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def differences(self, plan: Plan) -> list[str] | None:
        """Return what the journal's plan and this one differ in; None without a journal."""
        try:
            found = json.loads((self._folder / JOURNAL).read_bytes())
            identity = found["identity"]
            self.shards = [WrittenShard(**shard) for shard in found["shards"]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        ours, theirs = (dict(_flatten(value)) for value in (_identity(plan), identity))
        keys = sorted(ours.keys() | theirs.keys())
        return [
            f"{key}: {theirs.get(key, 'nothing')} then, {ours.get(key, 'nothing')} now"
            for key in keys
            if ours.get(key) != theirs.get(key)
        ]

    def intact(self) -> list[WrittenShard]:
        """Return the journal's shards whose files still have the bytes they had."""
        return [shard for shard in self.shards if _is_intact(self._folder, shard)]

    def begin(self, plan: Plan, kept: list[WrittenShard]) -> None:
        """Write a journal for a plan of which some shards are there already."""
        self._identity, self.shards = _identity(plan), list(kept)
        self._write()

    def add(self, shard: WrittenShard) -> None:
        """Note a shard that is durable."""
        self.shards.append(shard)
        self._write()

    def is_empty(self) -> bool:
        """Whether there is nothing to go on with."""
        return not self.shards

    def _write(self) -> None:
        shards = [asdict(shard) for shard in self.shards]
        content = json.dumps({"identity": self._identity, "shards": shards}, indent=1)
        replace_file(self._folder / JOURNAL, content.encode())


def partial_name(file: str) -> str:
    """Return the name of a shard in the staging folder, which no loader knows."""
    return f"{file}.partial"


def _is_intact(folder: Path, shard: WrittenShard) -> bool:
    try:
        with open(folder / partial_name(shard.file), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
    except OSError:
        return False


def _identity(plan: Plan) -> dict[str, Any]:
    """Return what the bytes of the shards depend on, as JSON values."""
    inputs = {
        f"{number}: {model.label}": {
            "coefficient": model.coefficient,
            "files": {file.name: file.model_dump(exclude={"name"}) for file in model.files},
        }
        for number, model in enumerate(plan.inputs, start=1)
    }
    identity = {
        "arithmetic": plan.arithmetic,
        "recipe": plan.recipe.model_dump(mode="json", exclude={"models", "side_files_from"}),
        "inputs": inputs,
        "shards": {shard.file: shard.file_size for shard in plan.shards},
        "fingerprint": plan.fingerprint(),
    }
    result: dict[str, Any] = json.loads(json.dumps(identity))
    return result


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path} {key}".strip())
    else:
        yield path, value


def refusal(label: str, differences: list[str]) -> OutputError:
    """Return the error for a staging folder with the work of another plan."""
    shown = [line for line in differences if not line.startswith("fingerprint")] or differences
    return OutputError(
        f"{label} holds the unfinished result of another merge, which differs in:\n"
        f"{listing(shown)}",
        "Run that merge again to finish it, or give --overwrite to start this one anew.",
    )
