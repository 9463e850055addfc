"""One file on the Hub, read by ranged requests that survive what networks do.

The Hub answers a request for a large file with a redirect to a store elsewhere, by a link that is
signed for some minutes or hours. The link is kept and used until the store refuses it; then the
Hub is asked for another. A connection that is cut goes on at the byte where it stopped.

What is checked of an answer: that it is the range that was asked for, of a file of the size, commit
and digest that the repository lists. That its bytes are right cannot be seen in a range.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

from streammerge.errors import HubError, ReadError, StreammergeError, printable
from streammerge.storage.retrying import LONG_TRIES, BrokenAnswer, Patience, Stopped, no_answer

_REFUSED_LINK = (400, 401, 403, 404, 410)  # what stores answer once a signed link has expired
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_FEW = 3  # answers that make no sense, before it is said


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the repository's listing says of a file: bytes, and digest as in `FileIdentity`."""

    size: int
    digest: str


class HubFile:
    """A file at a commit. Threads may read it at the same time.

    Args:
        repo_id, commit, path: which file.
        listed: its size and digest.
        token: None for the one that is logged in.
    """

    def __init__(
        self, repo_id: str, commit: str, path: str, listed: RemoteFile, token: str | None
    ) -> None:
        from huggingface_hub import hf_hub_url

        self.label = printable(f"{repo_id}/{path}")
        self.size = listed.size
        self._repo_id, self._commit, self._listed, self._token = repo_id, commit, listed, token
        self._url = hf_hub_url(repo_id, path, revision=commit)
        self._link: str | None = None

    def read_into(
        self,
        offset: int,
        view: memoryview,
        stop: Event | None = None,
        tries: int = LONG_TRIES,
    ) -> None:
        """Fill `view` with the bytes from `offset`.

        Args:
            offset: first byte in the file.
            view: room for the bytes.
            stop: ends the reading with `Stopped`.
            tries: failures in a row before it is given up.

        Raises:
            ReadError: the file ends before that, or the network fails for too long.
            HubError: the Hub refuses.
        """
        if offset + len(view) > self.size:
            raise ReadError(
                f"{self.label} ends before byte {offset + len(view):,}, which its header promises",
                "The file in the repository is truncated: use another revision.",
            )
        done, patience, senseless = 0, Patience(tries, stop), 0
        while done < len(view):
            before = done
            error: Exception | None = None
            try:
                with closing(self._request(offset + done, offset + len(view))) as chunks:
                    for chunk in chunks:
                        if stop is not None and stop.is_set():
                            raise Stopped
                        view[done : done + len(chunk)] = chunk
                        done += len(chunk)
            except _LinkExpired:
                continue
            except (StreammergeError, Stopped):
                raise
            except Exception as raised:
                error = raised
            if done > before:
                patience.renew()
            elif isinstance(error, BrokenAnswer):
                senseless += 1
            if done < len(view):
                error = error or BrokenAnswer("the answer ended early")
                self._wait(patience, error, senseless, offset + done)

    def _wait(self, patience: Patience, error: Exception, senseless: int, position: int) -> None:
        try:
            if senseless >= _FEW:
                raise error
            patience.wait(error)
        except Stopped:
            raise
        except Exception:
            raise self._given_up(error, position) from error

    def _given_up(self, error: Exception, position: int) -> StreammergeError:
        """Return the error for people; a link with its signature must not be in it."""
        from streammerge.hub import explain, status_of

        remedy = "Run the same command again later: finished shards are kept."
        where = f"reading {self.label} at byte {position:,} failed"
        if isinstance(error, BrokenAnswer):
            remedy = "If it happens again, use --download cache, which asks for no ranges."
            return ReadError(f"{where}: {error}", remedy)
        status = status_of(error)
        if no_answer(error):
            reason = printable(str(error)) or type(error).__name__
            return ReadError(f"{where}: {reason}", f"Check the network. {remedy}")
        if status == 429 or status >= 500:
            return ReadError(f"{where}: the server answers {status} time and again", remedy)
        return explain(error, "read", self._repo_id)

    def _request(self, begin: int, end: int) -> Generator[bytes, None, None]:
        """Yield bytes of the range as they arrive, from the first on, perhaps not to the last."""
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        link = self._link
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        if link is None:
            headers = build_hf_headers(token=self._token, headers=headers)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream(
            "GET", link or self._url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            if link is not None and response.status_code in _REFUSED_LINK:
                if self._link == link:
                    self._link = None
                raise _LinkExpired
            if response.status_code in _REFUSED_LINK and _is_elsewhere(response):
                raise BrokenAnswer(f"the store refuses a fresh link ({response.status_code})")
            hf_raise_for_status(response)
            if link is None:
                self._check_redirect(response)
            left = self._check_range(response, begin, end)
            for chunk in response.iter_raw():
                left -= len(chunk)
                if left < 0:
                    raise BrokenAnswer("the answer is longer than it says")
                yield chunk

    def _check_redirect(self, response: Any) -> None:
        """Hold what the Hub says of the file against the listing, and keep the link it gave."""
        first = response.history[0] if response.history else response
        linked = first.headers.get("x-linked-etag", "").strip('W/"')
        commit = first.headers.get("x-repo-commit", self._commit)
        wanted = self._listed.digest.removeprefix("sha256:")
        is_large = self._listed.digest.startswith("sha256:")
        if commit != self._commit or (linked and is_large and linked != wanted):
            raise HubError(
                f"the Hub gives another file than it lists as {self.label} at {self._commit}",
                "Something between here and the Hub mixes files up: try without proxy or mirror.",
            )
        if _is_elsewhere(response):
            self._link = str(response.url)

    def _check_range(self, response: Any, begin: int, end: int) -> int:
        """Return how many bytes the answer promises; they begin where they were asked to."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise BrokenAnswer("the server compresses what it sends")
        if response.status_code == 200 and (begin, end) == (0, self.size):
            return self.size
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status_code != 206 or found is None:
            raise BrokenAnswer("the server does not answer ranged requests")
        first, last, total = int(found[1]), int(found[2]), found[3]
        if first != begin or not begin <= last < end or total not in ("*", str(self.size)):
            raise BrokenAnswer(f"the server sent {found[0]} instead of {begin}-{end - 1}")
        return last + 1 - first


def _is_elsewhere(response: Any) -> bool:
    """Whether a redirect led away from the Hub."""
    asked = response.history[0].url if response.history else response.url
    return (asked.host, asked.port) != (response.url.host, response.url.port)


class _LinkExpired(Exception):
    """The store takes the signed link no more: the next request asks the Hub for another."""
