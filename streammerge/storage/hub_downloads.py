"""A file brought into the cache by huggingface_hub, and checked against the repository's digest."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from streammerge.errors import DiskSpaceError, HubError, StreammergeError, printable
from streammerge.storage import hub_cache
from streammerge.storage.hub_files import RemoteFile
from streammerge.storage.retrying import Stopped, retried

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What was read of a file by ranges: so many bytes at its start, and their sha256."""

    length: int
    sha256: bytes


@dataclass(frozen=True)
class HubDownload:
    """See `storage.Download`.

    Attributes:
        file: path in the store.
        repo_id, commit, path: which file of the Hub.
        listed: what the repository says of it.
        token: None for the one that is logged in.
        seen: its beginning as it was read for the plan, where it was.
    """

    file: str
    repo_id: str
    commit: str
    path: str
    listed: RemoteFile
    token: str | None = field(repr=False)
    seen: Beginning | None = None

    @property
    def folder(self) -> Path:
        """Where the cache keeps this repository."""
        return hub_cache.repository_folder(self.repo_id)

    @property
    def _label(self) -> str:
        return printable(f"{self.repo_id}/{self.path}")

    @property
    def missing(self) -> int:
        """Bytes to be fetched."""
        return self.listed.size if self.find() is None else 0

    def find(self) -> Path | None:
        """Return where the file lies, checked or not."""
        return hub_cache.find_file(self.repo_id, self.commit, self.path)

    def is_done(self) -> bool:
        """Whether the file is here, as right as can be told, and the one that was planned with."""
        found = self.find()
        return found is not None and self._is_known(found) and self._begins_as_seen(found)

    def run(self, progress: Progress = lambda n: None, stop: Event | None = None) -> list[str]:
        """Fetch and check the file, once more where it is wrong; see `storage.Download`."""
        notes: list[str] = []
        stop = stop or Event()
        for attempt in range(2):
            found, here = self.find(), True
            if found is None:
                found, here = self._fetch(progress, stop, anew=attempt > 0), False
            if self._is_right(found, stop):
                return notes
            self._discard(found)
            where = "in the cache" if here else "as it arrived"
            notes.append(
                f"{self._label} {where} had not the digest that the repository lists: "
                "it was deleted and downloaded again"
            )
        raise HubError(
            f"{self._label} does not have the digest that the repository lists at "
            f"{self.commit} ({self.listed.digest}), however often it is downloaded",
            "The wrong file was deleted. Something on the way changes it: try without proxy or "
            "mirror, or another network.",
        )

    def cut(self) -> None:
        """Close the client's connections, all of them at once; it opens others when it needs to.

        The client looks at `stop` after every 10 MiB only, which may take minutes.
        """
        from huggingface_hub import close_session

        close_session()

    def _is_right(self, found: Path, stop: Event) -> bool:
        if found.stat().st_size != self.listed.size:
            return False
        if not self._is_known(found) and not hub_cache.check(found, self.listed.digest, stop):
            return False
        if not self._begins_as_seen(found):
            raise HubError(
                f"the plan was made from a header of {self._label} that is not the file's",
                "It arrived wrong. Run the same command again.",
            )
        return True

    def _is_known(self, found: Path) -> bool:
        return not self.listed.digest or hub_cache.is_checked(found, self.listed.digest)

    def _begins_as_seen(self, found: Path) -> bool:
        if self.seen is None:
            return True
        with open(found, "rb") as file:
            return hashlib.sha256(file.read(self.seen.length)).digest() == self.seen.sha256

    def _fetch(self, progress: Progress, stop: Event, anew: bool) -> Path:
        """Have the client download the file, from its start however often it fails."""
        from huggingface_hub import hf_hub_download

        def attempt() -> Path:
            return Path(
                hf_hub_download(
                    self.repo_id,
                    self.path,
                    revision=self.commit,
                    token=self.token,
                    force_download=anew,
                    tqdm_class=_progress_class(progress, stop),
                )
            )

        try:
            return retried(attempt, stop=stop)
        except (StreammergeError, Stopped):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskSpaceError(
                    f"the disk with the cache {self.folder} is full",
                    "Free some space, set HF_HOME to a folder on another disk, or give "
                    "--download stream, which needs none.",
                ) from error
            from streammerge.hub import explain

            cause = _cause(error)
            raise explain(cause, f"download {printable(self.path)} of", self.repo_id) from error

    def _discard(self, found: Path) -> None:
        try:
            hub_cache.discard(found)
        except OSError as error:
            raise HubError(
                f"{found} has not the digest that the repository lists, and cannot be deleted",
                "Delete it, then run the same command again.",
            ) from error


def _cause(error: Exception) -> Exception:
    """Return what the client wraps where it found a file neither on the Hub nor in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    wrapped = isinstance(error, LocalEntryNotFoundError) and error.__cause__
    return wrapped if isinstance(wrapped, Exception) else error


def _progress_class(progress: Progress, stop: Event) -> Any:
    """Return what the client takes for a progress bar; it counts, and ends the download."""

    class Counter:
        update_transfer = staticmethod(lambda n: None)  # the bytes are counted when written

        def __init__(self, *args: Any, **options: Any) -> None:
            self.n, self.total = 0, options.get("total")

        def __enter__(self) -> Counter:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def update(self, n: int) -> None:
            if stop.is_set():
                raise Stopped
            progress(int(n))

        def close(self) -> None:
            pass

        def set_postfix_str(self, *args: Any, **options: Any) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

    return Counter
