"""A repository on the Hub as a store, pinned to one commit.

The commit is asked for once, and named in every request after it, so that a branch may move in the
middle of a merge. Names and sizes come from one listing. Small files are read whole and checked
against their digests. Of weights, planning reads the beginnings by ranged requests, several at
once; the rest comes as the download mode says:

- cache: whole files through the cache of huggingface_hub, each checked against its sha256;
- stream: the ranges that the merge needs, while it needs them; nothing is stored.

A file that is in the cache already is checked and used in either mode.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from streammerge.errors import CheckpointError, HubError, printable
from streammerge.references import Reference
from streammerge.storage import DownloadMode, FileIdentity, IoMode, RangeReader, hub_cache
from streammerge.storage.connections import StreamReader
from streammerge.storage.hub_downloads import Beginning, HubDownload
from streammerge.storage.hub_files import HubFile
from streammerge.storage.hub_listing import open_listing
from streammerge.storage.local import LocalStorage
from streammerge.storage.retrying import QUICK_TRIES

_LEAST_BEGINNING, _MOST_BEGINNING = 4 * 1024, 64 * 1024  # headers have 3 to 60 kB nearly always
_AT_ONCE = 8
_LOOK = "Look at the files of the repository on the Hub."
_SHARD = re.compile(r"(.*)-\d{5}(-of-\d{5}\.safetensors)")


class HubStorage:
    """A folder of a repository; see `storage.Storage`."""

    def __init__(
        self,
        reference: Reference,
        folder: str = "",
        mode: DownloadMode = "cache",
        token: str | None = None,
    ) -> None:
        """Pin the revision and list the files.

        Args:
            reference: what the user wrote.
            folder: of the repository, the root of the store.
            mode: see the head of this module.
            token: None for the one that is logged in.

        Raises:
            HubError: the Hub refuses or cannot be reached.
            CheckpointError: there is no such folder.
        """
        self.label = reference.text
        self._repo_id, self._folder = reference.repo_id, folder
        self._mode, self._token = mode, token
        listing = open_listing(reference.repo_id, reference.revision, token)
        self.notes, self.place = listing.notes, listing.place
        if mode == "stream":
            self.notes.append(
                f"{self.label} is streamed: that its weights arrive right cannot be checked as "
                "--download cache does"
            )
        self.pinned = reference.pinned(listing.commit)
        self._commit = listing.commit
        prefix = f"{folder}/" if folder else ""
        self._files = {
            path.removeprefix(prefix): file
            for path, file in listing.files.items()
            if path.startswith(prefix)
        }
        if folder and not self._files:
            raise CheckpointError(
                f"{reference.repo_id} has no folder {printable(folder)} {self.place}",
                _LOOK,
            )
        self._remote: dict[str, HubFile] = {}
        self._beginnings: dict[str, bytes] = {}
        self._seen: dict[str, Beginning] = {}

    def name(self, path: str) -> str:
        """Return the reference of a file."""
        return f"{self.label}/{path}" if self._folder else f"{self.label}:{path}"

    def identity(self, path: str) -> FileIdentity:
        """Return size, commit, and the digest that the repository lists."""
        if path not in self._files:
            raise CheckpointError(f"{printable(self.name(path))} is not there {self.place}", _LOOK)
        return FileIdentity(self._files[path].size, self._commit, self._files[path].digest)

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a file: all of a small one, or of the beginning of a large one."""
        size = self.identity(path).size
        job = self._download(path)
        found = job.find()
        if length is None and (found is not None or self._mode == "cache"):
            self.notes += job.run()
            found = job.find()
        if found is not None:
            return LocalStorage(found.parent).read(found.name, offset, length)
        if length is None:
            return self._read_small(path)[offset:]
        end = min(offset + length, size)
        return self._read_beginning(path, offset, end) if offset < end else b""

    def _read_small(self, path: str) -> bytes:
        """Read a whole file into memory, once more where it does not have its digest."""
        listed = self._files[path]
        for _ in range(2):
            content = self._read_range(path, 0, listed.size)
            if listed.digest in ("", hub_cache.digest_of_bytes(content, listed.digest)):
                return content
        raise HubError(
            f"{printable(self.name(path))} does not have the digest that the repository lists "
            f"({listed.digest})",
            "Something on the way changes it: try without proxy or mirror.",
        )

    def _read_beginning(self, path: str, offset: int, end: int) -> bytes:
        """Return a range near the start of a file, of which some is fetched at once and kept.

        What follows the first bytes is a header; once that is read, its digest is kept instead.
        """
        known = self._beginnings.pop(path, None) or self._read_beginnings(path)
        if len(known) < offset:
            return self._read_range(path, offset, end)
        if len(known) < end:
            known += self._read_range(path, len(known), end)
        if offset == 0:
            self._beginnings[path] = known
        self._seen[path] = Beginning(end, hashlib.sha256(known[:end]).digest())
        return known[offset:end]

    def _read_beginnings(self, path: str) -> bytes:
        """Read the beginnings of a file and of the shards beside it; return that of the file."""
        wanted = [path, *self._shards_beside(path)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            read = pool.map(lambda p: self._read_range(p, 0, self._beginning_of(p)), wanted)
            self._beginnings.update(zip(wanted, read, strict=True))
        return self._beginnings.pop(path)

    def _beginning_of(self, path: str) -> int:
        """Return how many bytes to fetch for a header: little of the file, for it comes again."""
        return max(_LEAST_BEGINNING, min(_MOST_BEGINNING, self._files[path].size // 64))

    def _shards_beside(self, path: str) -> list[str]:
        """Return the other shards of the same split that are to be read from the Hub."""
        split = _SHARD.fullmatch(path)
        if split is None:
            return []
        others = ((p, _SHARD.fullmatch(p)) for p in self._files if p != path)
        beside = [p for p, match in others if match and match.groups() == split.groups()]
        return [p for p in beside if p not in self._seen and self._download(p).find() is None]

    def _read_range(self, path: str, begin: int, end: int) -> bytes:
        content = bytearray(min(end, self._files[path].size) - begin)
        if content:
            self._open_remote(path).read_into(begin, memoryview(content), tries=QUICK_TRIES)
        return bytes(content)

    def _open_remote(self, path: str) -> HubFile:
        listed = self._files[path]
        if path not in self._remote:
            full = self._path(path)
            self._remote[path] = HubFile(self._repo_id, self._commit, full, listed, self._token)
        return self._remote[path]

    def _path(self, path: str) -> str:
        return f"{self._folder}/{path}" if self._folder else path

    def _download(self, path: str) -> HubDownload:
        return HubDownload(
            path,
            self._repo_id,
            self._commit,
            self._path(path),
            self._files[path],
            self._token,
            self._seen.get(path),
        )

    def pending(self, path: str) -> HubDownload | None:
        """Return the download of a file; None where it is here and checked, or is streamed."""
        job = self._download(path)
        streamed = self._mode == "stream" and job.find() is None
        return None if streamed or job.is_done() else job

    def open(self, path: str, mode: IoMode) -> RangeReader:
        """Open a file in the cache, downloaded and checked by now, or a stream of it."""
        self.identity(path)
        if mode != "sample" and (job := self.pending(path)) is not None:
            job.run()
        found = self._download(path).find()
        if found is not None:
            return LocalStorage(found.parent).open(found.name, mode)
        return StreamReader(self._open_remote(path))

    def list(self, folder: str = "") -> Mapping[str, int]:
        """Return the size of each file directly in a folder."""
        found = {p: f.size for p, f in self._files.items() if posixpath.dirname(p) == folder}
        if folder and not found:
            raise CheckpointError(
                f"{printable(self.name(folder))} is not there {self.place}", _LOOK
            )
        return found
