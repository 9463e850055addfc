"""A folder that is finished, sent to a branch of a repository in one commit.

Its streammerge.json has the sha256 of every file, so none is read only to be hashed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from streammerge.outputs import Pushed, WrittenShard
from streammerge.outputs.directory import DirectoryOutput
from streammerge.outputs.hub_client import addition, is_uploaded
from streammerge.outputs.hub_commit import Commit, Parcel, parcel_of
from streammerge.outputs.hub_repository import Destination, Repository, Snapshot
from streammerge.outputs.manifest import MANIFEST, Manifest, read_manifest
from streammerge.outputs.shardfile import DirectoryShard, write_error
from streammerge.plan import Plan
from streammerge.storage.local import LocalStorage

_AT_ONCE = 5  # files that the client sends at the same time
Progress = Callable[[int], None]


def push_folder(
    repository: Repository, base: Snapshot, folder: Path, manifest: Manifest, progress: Progress
) -> Pushed:
    """Send a folder and commit it; see `hub_commit.Commit`.

    Args:
        repository: where to; prepared.
        base: what lay there then.
        folder: what streammerge wrote; its weights are those that the manifest says.
        manifest: of the folder.
        progress: called with the bytes of weights sent since the last call.

    Raises:
        HubError: nothing was committed.
        OutputError: a file cannot be read.
    """
    parcels = []
    try:
        for begin in range(0, len(manifest.shards), _AT_ONCE):
            some = manifest.shards[begin : begin + _AT_ONCE]
            operations = [addition(s.file, folder / s.file, s.sha256) for s in some]
            repository.upload(operations)
            for shard, operation in zip(some, operations, strict=True):
                if is_uploaded(operation):
                    parcels.append(Parcel(operation, frozenset({shard.sha256})))
                else:  # the repository keeps it in git, so it is small
                    parcels.append(parcel_of(shard.file, (folder / shard.file).read_bytes()))
                progress(shard.bytes)
        for path in (*manifest.files, MANIFEST):
            parcels.append(parcel_of(path, (folder / path).read_bytes()))
    except OSError as error:
        raise write_error("read", folder, error) from error
    models, fingerprint = len(manifest.inputs), manifest.fingerprint
    return Commit(repository, base, parcels, models, fingerprint).make()


class PushedDirectory:
    """Writes to a folder, and pushes the folder when it is published; see `outputs.Target`."""

    needs_digest = True
    one_by_one = False

    def __init__(self, folder: DirectoryOutput, path: Path, destination: Destination) -> None:
        self.label, self.place = folder.label, path
        self.pushed: Pushed | None = None
        self.progress: Progress = lambda nbytes: None
        self._folder = folder
        self._repository = Repository(destination)
        self._base: Snapshot
        self._published = False

    def check(self) -> None:
        """Refuse a folder or a repository that cannot be written to."""
        self._folder.check()
        self._repository.check()

    def check_space(self, plan: Plan) -> None:
        """Refuse an output that does not fit on the disk."""
        self._folder.check_space(plan)

    def space(self, plan: Plan) -> tuple[Path, int]:
        """Return the folder, and what is not written there yet."""
        return self._folder.space(plan)

    def bytes_to_send(self, plan: Plan) -> int:
        """Return the bytes of all shards."""
        return sum(shard.file_size for shard in plan.shards)

    def begin(self, plan: Plan) -> list[WrittenShard]:
        """Make room in the folder, and the repository; see `Output`."""
        kept = self._folder.begin(plan)
        self._base = self._repository.prepare()
        return kept

    def create(self, file: str, size: int) -> DirectoryShard:
        """Begin a shard in the folder; see `Output`."""
        return self._folder.create(file, size)

    def complete(self, shard: WrittenShard) -> None:
        """Note a durable shard; see `Output`."""
        self._folder.complete(shard)

    def publish(self, documents: Mapping[str, bytes], last: str) -> None:
        """Publish the folder, then push it; see `Output`."""
        self._folder.publish(documents, last)
        self._published = True
        manifest, _ = read_manifest(LocalStorage(self.place))
        try:
            self.pushed = push_folder(
                self._repository, self._base, self.place, manifest, self.progress
            )
        except BaseException as error:
            command = shlex.join(self._repository.destination.push_command(self.label))
            error.add_note(f"{self.label} is complete: go on with `{command}`.")
            raise

    def stop(self) -> None:
        """Do nothing: writes do not wait here."""

    def abandon(self) -> bool:
        """End without publishing; see `Output`."""
        return False if self._published else self._folder.abandon()
