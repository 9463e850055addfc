"""What the stand-in Hub keeps: repositories of commits of files, and large files by their sha256.

A commit maps every path to a `Blob`, as a git tree does, so that history costs nothing and a
branch, a tag or a pull request is a name for a commit.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

MAIN = "refs/heads/main"
LARGE_FROM = 10_000_000  # bytes; the Hub takes larger files as large files whatever their name
ATTRIBUTES = "".join(
    f"{glob} filter=lfs diff=lfs merge=lfs -text\n"
    for glob in ("*.safetensors", "*.bin", "*.gguf", "*.h5", "*.onnx", "*.pt", "*.pth", "*.npz")
).encode()


@dataclass(frozen=True)
class Blob:
    """One version of a file: in git with its content, or a pointer into the object store.

    `oid` is git's id of what git keeps: the content, or the pointer of a large file.
    """

    size: int
    oid: str
    sha256: str | None = None
    data: bytes = b""

    @classmethod
    def of(cls, data: bytes) -> Blob:
        return cls(len(data), git_id(data), None, data)

    @classmethod
    def large(cls, sha256: str, size: int) -> Blob:
        return cls(size, git_id(pointer(sha256, size)), sha256)

    @property
    def is_large(self) -> bool:
        return self.sha256 is not None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def pointer(sha256: str, size: int) -> bytes:
    """What git keeps for a large file, see the specification of git-lfs."""
    version = "https://git-lfs.github.com/spec/v1"
    return f"version {version}\noid sha256:{sha256}\nsize {size}\n".encode()


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    description: str
    author: str
    date: datetime
    files: Mapping[str, Blob]


@dataclass
class Repository:
    """A model repository. `readers` may read it although it is private or gated."""

    id: str
    private: bool = False
    gated: str | bool = False
    readers: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # sha256 of what was uploaded to this repository

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch, a tag, a full ref, a commit or the start of one names."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.commits[self.refs[name]]
        found = [c for oid, c in self.commits.items() if oid.startswith(revision)]
        return found[0] if len(found) == 1 and len(revision) >= 7 else None

    def branch(self, revision: str) -> str | None:
        """The full name of the ref that a commit to `revision` would move."""
        names = (f"refs/heads/{revision}", revision)
        return next((name for name in names if name in self.refs and "/tags/" not in name), None)

    def commit(
        self,
        ref: str,
        files: Mapping[str, Blob],
        title: str,
        *,
        parent: str | None,
        description: str = "",
        author: str = "someone",
    ) -> Commit:
        """Record `files` as the whole tree after `parent`, and let `ref` name it."""
        number = len(self.commits) + 1
        oid = hashlib.sha1(f"{self.id}\0{parent}\0{title}\0{number}".encode()).hexdigest()
        date = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        commit = Commit(oid, parent, title, description, author, date, dict(files))
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def history(self, revision: str = "main") -> Iterator[Commit]:
        """A commit and what came before it, the newest first."""
        commit = self.find(revision)
        while commit is not None:
            yield commit
            commit = self.commits.get(commit.parent) if commit.parent else None


def goes_large(path: str, size: int, sample: bytes, attributes: bytes) -> bool:
    """Whether the Hub wants a file as a large file: by name, size or because it is no text."""
    lines = (line.split() for line in attributes.decode().splitlines())
    globs = [words[0] for words in lines if "filter=lfs" in words]
    named = any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], glob) for glob in globs)
    return named or size > LARGE_FROM or b"\0" in sample


class Objects:
    """Large files, each in a file that is named by its sha256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count()

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def incoming(self) -> Incoming:
        return Incoming(self, self.folder / f"incoming-{next(self._numbers)}")

    def take(self, source: bytes | Path) -> str:
        """Keep a copy and return its sha256."""
        with self.incoming() as incoming:
            if isinstance(source, bytes):
                incoming.write(source)
            else:
                with source.open("rb") as stream:
                    while piece := stream.read(1 << 20):
                        incoming.write(piece)
        return incoming.keep()


class Incoming:
    """A large file while it arrives: nothing is kept under its name before `keep`."""

    def __init__(self, objects: Objects, path: Path) -> None:
        self._objects, self.path = objects, path
        self._digest = hashlib.sha256()
        self._stream = path.open("wb")

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, piece: bytes) -> None:
        self._stream.write(piece)
        self._digest.update(piece)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def keep(self) -> str:
        self._stream.close()
        os.replace(self.path, self._objects.path(self.sha256))
        return self.sha256

    def discard(self) -> None:
        self._stream.close()
        self.path.unlink(missing_ok=True)
