"""The stand-in as tests hold it: make repositories, look into them, tell faults, read the log."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from tests.support.hub.effects import Effect
from tests.support.hub.faults import Fault
from tests.support.hub.log import Entry, Log
from tests.support.hub.repos import (
    ATTRIBUTES,
    MAIN,
    Blob,
    Commit,
    Incoming,
    Objects,
    Repository,
    goes_large,
)
from tests.support.hub.routes import application
from tests.support.hub.server import Thread, free_port
from tests.support.hub.xet import Chunks

Source = bytes | str | Path


class Hub:
    """A Hub at `url` whose large files lie at `store_url`, another host name.

    Attributes:
        log: every request, see `Log`.
        part_size: uploads above this many bytes go in parts (the real Hub: 5 GB or so).
        page_size: entries of a page of a tree.
        objects: the large files, below `folder`.
        chunks: what came by the Xet path, if there is one (`xet`); see xet.py.
    """

    def __init__(self, folder: Path, *, xet: bool = False) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects = Objects(folder / "objects")
        self.chunks = Chunks(folder / "chunks") if xet else None
        self.parts: dict[tuple[str, str, int], Incoming] = {}
        self.log, self.faults = Log(), list[Fault]()
        self.part_size, self.page_size = 5_000_000_000, 1000
        self.oldest_link, self._links = 0, itertools.count()
        listeners = [free_port(), free_port()]
        self.hub_port, self.store_port = (s.getsockname()[1] for s in listeners)
        self.url = f"http://127.0.0.1:{self.hub_port}"
        self.store_url = f"http://localhost:{self.store_port}"
        self._thread = Thread(application(self), listeners)

    def stop(self) -> None:
        """End the server: from now on nobody can connect, as without a network."""
        self._thread.stop()

    # Repositories, without the client

    def create(
        self,
        repo: str,
        files: Mapping[str, Source] | Path | None = None,
        *,
        private: bool = False,
        gated: str | bool = False,
        readers: Iterable[str] = (),
    ) -> Repository:
        """Make a repository as the Hub does, with `.gitattributes`, and commit `files` if any.

        Args:
            repo: "owner/name".
            files: path → content, or a folder whose files are taken as they lie in it.
            private: only its owner and `readers` know that it exists.
            gated: "auto" or "manual": everybody sees the names, only `readers` the content.
        """
        repository = Repository(repo, private, gated, set(readers))
        start = {".gitattributes": Blob.of(ATTRIBUTES)}
        repository.commit(MAIN, start, "initial commit", parent=None)
        self.repositories[repo] = repository
        if files is not None:
            self.commit(repo, files)
        return repository

    def commit(
        self,
        repo: str,
        files: Mapping[str, Source | None] | Path,
        message: str = "a change",
        *,
        branch: str = "main",
    ) -> str:
        """Add a commit to a branch, made if need be, and return its id. None deletes a file."""
        if isinstance(files, Path):
            found = sorted(p for p in files.rglob("*") if p.is_file())
            files = {p.relative_to(files).as_posix(): p for p in found}
        repository = self.repositories[repo]
        ref = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
        head = repository.find(ref) or repository.commits[repository.refs[MAIN]]
        tree = dict(head.files)
        for path, source in files.items():
            if source is None:
                del tree[path]
            else:
                tree[path] = self._blob(repository, path, source, tree)
        return repository.commit(ref, tree, message, parent=head.oid).oid

    def _blob(
        self, repository: Repository, path: str, source: Source, tree: Mapping[str, Blob]
    ) -> Blob:
        content = source.encode() if isinstance(source, str) else source
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if not goes_large(path, size, b"", tree[".gitattributes"].data):
            return Blob.of(content.read_bytes() if isinstance(content, Path) else content)
        sha256 = self.objects.take(content)
        if self.chunks is not None:
            self.chunks.put(self.objects.path(sha256))
        repository.objects.add(sha256)
        return Blob.large(sha256, size)

    def tag(self, repo: str, name: str, revision: str = "main") -> None:
        commit = self.repositories[repo].find(revision)
        assert commit is not None, f"no revision {revision}"
        self.repositories[repo].refs[f"refs/tags/{name}"] = commit.oid

    # Looking into them

    def head(self, repo: str, revision: str = "main") -> str:
        """The commit that a branch, a tag or a pull request names now."""
        return self._at(repo, revision).oid

    def files(self, repo: str, revision: str = "main") -> dict[str, Blob]:
        """Path → blob, without `.gitattributes`."""
        found = self._at(repo, revision).files
        return {path: blob for path, blob in found.items() if path != ".gitattributes"}

    def read(self, repo: str, path: str, revision: str = "main") -> bytes:
        blob = self._at(repo, revision).files[path]
        return self.large(blob).read_bytes() if blob.is_large else blob.data

    def large(self, blob: Blob) -> Path:
        """The content of a large file, put together first if it came in chunks."""
        assert blob.sha256 is not None
        path, xet_hash = self.objects.path(blob.sha256), self.xet_hash(blob)
        if xet_hash is not None and not path.exists():
            assert self.chunks is not None
            self.chunks.fetch(xet_hash, blob.size, path)
        return path

    def xet_hash(self, blob: Blob) -> str | None:
        return self.chunks.hash(blob.sha256) if self.chunks is not None else None

    def checkout(self, repo: str, folder: Path, revision: str = "main") -> Path:
        """Write the files of a revision into a folder, to compare them with local ones."""
        for path in self.files(repo, revision):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(self.read(repo, path, revision))
        return folder

    def history(self, repo: str, revision: str = "main") -> list[Commit]:
        """The commits of a revision, the newest first; the last is the Hub's own."""
        return list(self.repositories[repo].history(revision))

    def _at(self, repo: str, revision: str) -> Commit:
        found = self.repositories[repo].find(revision)
        assert found is not None, f"{repo} has no revision {revision}"
        return found

    # Faults

    def fault(
        self,
        effect: Effect,
        *,
        kind: str = "*",
        repo: str = "*",
        file: str = "*",
        method: str = "*",
        times: int | None = 1,
        skip: int = 0,
    ) -> Fault:
        """Let an effect hit requests that match the globs.

        Args:
            kind: the endpoint, as in routes.py and in the log.
            times: how many requests it hits; None for every one.
            skip: how many requests pass before it hits the first.

        Returns:
            The fault; `hits` counts.
        """
        self.faults.append(Fault(effect, kind, repo, file, method, times, skip))
        return self.faults[-1]

    def heal(self) -> None:
        """Forget all faults."""
        self.faults.clear()

    def effects(self, entry: Entry) -> list[Effect]:
        """The effects that hit a request."""
        hitting = [fault for fault in self.faults if fault.takes(entry)]
        entry.fault = ", ".join(fault.name for fault in hitting)
        return [fault.effect for fault in hitting]

    def signed(self, place: str, **query: str | int) -> str:
        """A link into the store that works until `expire_links`."""
        query["signature"] = next(self._links)
        return f"{self.store_url}{quote(place)}?{urlencode(query)}"

    def expire_links(self) -> None:
        """Let every link that was given out so far answer 403."""
        self.oldest_link = next(self._links)
