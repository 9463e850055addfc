"""A repository on the Hub as the target, with room for two shards on this machine's disk.

A shard is written to a staging folder in the Hub's cache, sent when it is finished, and removed
while the next one is merged. What was sent is nowhere to be seen before `publish` commits all of it
at once. A journal in the staging folder says what was sent, so that an interrupted merge goes on
after it; its name follows from the plan and the destination, so each merge has its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event

from huggingface_hub import cached_assets_path, constants

from streammerge.errors import DiskSpaceError
from streammerge.outputs import Pushed, WrittenShard
from streammerge.outputs.directory import existing
from streammerge.outputs.hub_client import addition, is_uploaded, uploaded_addition
from streammerge.outputs.hub_commit import Commit, Parcel, parcel_of
from streammerge.outputs.hub_repository import Destination, Repository, Snapshot
from streammerge.outputs.hub_uploads import Uploads
from streammerge.outputs.journal import JOURNAL, LOCK, Journal, partial_name
from streammerge.outputs.shardfile import DirectoryShard, write_error
from streammerge.plan import Plan
from streammerge.tensors import format_size

SHARDS_ON_DISK = 2


class HubShard:
    """A shard in the staging folder, whose writes wait for room; see `ShardFile`."""

    def __init__(self, file: DirectoryShard, uploads: Uploads) -> None:
        self._file, self._uploads = file, uploads

    def write(self, offset: int, buffer: memoryview, length: int) -> None:
        """Write a stretch of the file, when there is room for it."""
        self._uploads.reserve(length)
        self._file.write(offset, buffer, length)

    def finish(self) -> None:
        """Write what is left."""
        self._file.finish()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class HubOutput:
    """Writes to a branch of a repository; see `outputs.Output`."""

    needs_digest = True
    one_by_one = True

    def __init__(self, destination: Destination) -> None:
        self.label = self.place = destination.label
        self.pushed: Pushed | None = None
        self.progress: Callable[[int], None] = lambda nbytes: None
        self._repository = Repository(destination)
        self._plan: Plan
        self._base: Snapshot
        self._staging: Path
        self._journal: Journal
        self._uploads: Uploads | None = None
        self._parcels: list[Parcel] = []
        self._lock = threading.Lock()

    def check(self) -> None:
        """Refuse a repository that cannot be written to; see `Repository.check`."""
        self._repository.check()

    def check_space(self, plan: Plan) -> None:
        """Refuse a cache without room for the shards that wait to be sent.

        Raises:
            DiskSpaceError: with what is needed and what is free.
        """
        cache, needed = self.space(plan)
        folder = existing(cache)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise DiskSpaceError(
                f"the shards on their way to {self.label} need {format_size(needed)}, "
                f"{folder} has {format_size(free)} free",
                "Free some space, set HF_HOME to another disk, or give a smaller --max-shard-size.",
            )

    def space(self, plan: Plan) -> tuple[Path, int]:
        """Return the cache, and what may lie there at a time."""
        return Path(constants.HF_ASSETS_CACHE), _most_on_disk(plan)

    def begin(self, plan: Plan) -> list[WrittenShard]:
        """Make repository and branch, and find what an interrupted run has sent; see `Output`."""
        self.check_space(plan)
        self._plan = plan
        self._base = self._repository.prepare()
        name = f"{self._repository.url}@{self._repository.destination.branch} {plan.fingerprint()}"
        folder = hashlib.sha256(name.encode()).hexdigest()[:32]
        try:
            cache, _ = self.space(plan)
            self._staging = cached_assets_path("streammerge", "uploads", folder, assets_dir=cache)
            self._journal = Journal(self._staging)
            kept = self._open_journal(plan)
        except OSError as error:
            raise write_error("prepare", Path(constants.HF_ASSETS_CACHE), error) from error
        for shard in kept:
            self._parcels.append(Parcel(uploaded_addition(shard), frozenset({shard.sha256})))
            self.progress(shard.bytes)
        self._uploads = Uploads(self._send, _most_on_disk(plan))
        return kept

    def _open_journal(self, plan: Plan) -> list[WrittenShard]:
        """Take the staging folder; return what was sent before and is still there."""
        self._journal.lock(self.label)
        try:
            _clear_forgotten(self._staging.parent)
            known = self._journal.differences(plan) == []
            kept = self._repository.stored(self._journal.shards) if known else []
            self._clear_staging()
            self._journal.begin(plan, kept)
        except BaseException:
            self._journal.release()
            raise
        return kept

    def create(self, file: str, size: int) -> HubShard:
        """Begin a shard; see `Output`."""
        assert self._uploads is not None
        path = self._staging / partial_name(file)
        try:
            return HubShard(DirectoryShard(path, size, reserve=False), self._uploads)
        except OSError as error:
            raise write_error("create", path, error) from error

    def complete(self, shard: WrittenShard) -> None:
        """Have a finished shard sent; see `Output`."""
        assert self._uploads is not None
        self._uploads.put(shard)

    def _send(self, shard: WrittenShard, stop: Event) -> None:
        path = self._staging / partial_name(shard.file)
        operation = addition(shard.file, path, shard.sha256)
        self._repository.upload([operation], stop)
        with self._lock:
            if self._uploads is None:
                return  # abandoned meanwhile
            if is_uploaded(operation):
                self._parcels.append(Parcel(operation, frozenset({shard.sha256})))
                self._journal.add(shard)
            else:  # the repository keeps it in git, so it is small and goes with the commit
                self._parcels.append(parcel_of(shard.file, path.read_bytes()))
            path.unlink()
        self.progress(shard.bytes)

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Commit shards and documents at once; see `Output`."""
        assert self._uploads is not None
        self._uploads.finish()
        parcels = [*self._parcels, *(parcel_of(path, documents[path]) for path in documents)]
        models, fingerprint = len(self._plan.inputs), self._plan.fingerprint()
        commit = Commit(self._repository, self._base, parcels, models, fingerprint)
        self.pushed = commit.make()
        self._uploads.stop()
        shutil.rmtree(self._staging, ignore_errors=True)
        self._journal.release()

    def bytes_to_send(self, plan: Plan) -> int:
        """Return the bytes of all shards."""
        return sum(shard.file_size for shard in plan.shards)

    def stop(self) -> None:
        """Wake writers that wait for room; see `Output`."""
        if self._uploads is not None:
            self._uploads.stop()

    def abandon(self) -> bool:
        """End without publishing; see `Output`."""
        if self._uploads is None:
            return False
        self._uploads.stop()
        self._uploads.join()
        with self._lock:
            self._uploads = None
        resumable = not self._journal.is_empty()
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            if resumable:
                self._clear_staging()
            else:
                shutil.rmtree(self._staging)
        self._journal.release()
        return resumable

    def _clear_staging(self) -> None:
        for path in self._staging.iterdir():
            if path.name not in (JOURNAL, LOCK):
                path.unlink()


def _most_on_disk(plan: Plan) -> int:
    return SHARDS_ON_DISK * max(shard.file_size for shard in plan.shards)


def _clear_forgotten(uploads: Path) -> None:
    """Remove shards that killed merges have left and that nobody came back for."""
    for folder in uploads.iterdir():
        journal = Journal(folder)
        if any(folder.glob("*.partial")) and not journal.try_lock():
            for path in folder.glob("*.partial"):
                with contextlib.suppress(OSError):
                    path.unlink()
            journal.release()
