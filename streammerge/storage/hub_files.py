"""One file on the Hub, read by ranged requests that survive what networks do.

The Hub answers a request for a large file with a redirect to a store elsewhere, by a link that is
signed for some minutes or hours. The link is kept and used until the store refuses it; then the
Hub is asked for another. A connection that is cut goes on at the byte where it stopped. The client
follows the redirect, and what is asked of the link goes over a `Wire` where there is one.

What is checked of an answer: that it is the range that was asked for, of a file of the size, commit
and digest that the repository lists. That its bytes are right cannot be seen in a range.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

from streammerge.errors import HubError, ReadError, StreammergeError, printable
from streammerge.storage.ranges import promised, range_headers
from streammerge.storage.retrying import (
    LONG_TRIES,
    TRANSIENT,
    BrokenAnswer,
    Patience,
    RefusedForNow,
    Stopped,
    no_answer,
    status_in,
)
from streammerge.storage.wire import Wire

_REFUSED_LINK = (400, 401, 403, 404, 410)  # what stores answer once a signed link has expired
_FEW = 3  # answers that make no sense, before it is said


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the repository's listing says of a file: bytes, and digest as in `FileIdentity`."""

    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Link:
    """Where the bytes of a file are to be had, and the headers that this place wants."""

    url: str
    headers: Mapping[str, str]


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
        self._link: _Link | None = None

    def read_into(
        self,
        offset: int,
        view: memoryview,
        stop: Event | None = None,
        tries: int = LONG_TRIES,
        wire: Wire | None = None,
    ) -> None:
        """Fill `view` with the bytes from `offset`.

        Args:
            offset: first byte in the file.
            view: room for the bytes.
            stop: ends the reading with `Stopped`.
            tries: failures in a row before it is given up.
            wire: connections of the calling thread, for what need not go through the client.

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
                with closing(self._receive(offset + done, view[done:], wire)) as counts:
                    for count in counts:
                        done += count
                        if stop is not None and stop.is_set():
                            raise Stopped
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
        from streammerge.hub import explain

        remedy = "Run the same command again later: finished shards are kept."
        where = f"reading {self.label} at byte {position:,} failed"
        if isinstance(error, BrokenAnswer):
            remedy = "If it happens again, use --download cache, which asks for no ranges."
            return ReadError(f"{where}: {error}", remedy)
        status = status_in(error)
        if no_answer(error):
            reason = printable(str(error)) or type(error).__name__
            return ReadError(f"{where}: {reason}", f"Check the network. {remedy}")
        if status in TRANSIENT or status >= 500:
            return ReadError(f"{where}: the server answers {status} time and again", remedy)
        return explain(error, "read", self._repo_id)

    def _receive(
        self, begin: int, view: memoryview, wire: Wire | None
    ) -> Generator[int, None, None]:
        """Move bytes into `view` as they arrive, and yield how many; perhaps not up to its end."""
        link = self._link
        if link is not None and wire is not None and wire.reaches(link.url):
            yield from self._receive_over(wire, link, begin, view)
        else:
            yield from self._receive_by_client(link, begin, view)

    def _receive_over(
        self, wire: Wire, link: _Link, begin: int, view: memoryview
    ) -> Generator[int, None, None]:
        end = begin + len(view)
        with wire.get(link.url, {**range_headers(begin, end), **link.headers}) as answer:
            if answer.status_code in TRANSIENT:
                raise RefusedForNow(answer)
            if answer.status_code not in (200, 206):
                raise self._expired(link)
            left = promised(answer, begin, end, self.size)
            done = 0
            while done < left and (count := answer.read_into(view[done:left])):
                done += count
                yield count

    def _receive_by_client(
        self, link: _Link | None, begin: int, view: memoryview
    ) -> Generator[int, None, None]:
        from huggingface_hub import constants
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            get_session,
            hf_raise_for_status,
        )

        from streammerge.hub import make_headers

        end = begin + len(view)
        own = link.headers if link else make_headers(self._token)
        headers = {**range_headers(begin, end), **own}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        url = link.url if link else self._url
        with get_session().stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as response:
            if link is not None and response.status_code in _REFUSED_LINK:
                raise self._expired(link)
            if response.status_code in _REFUSED_LINK and _is_elsewhere(response):
                raise BrokenAnswer(f"the store refuses a fresh link ({response.status_code})")
            hf_raise_for_status(response)
            if link is None:
                self._check_redirect(response)
                self._link = _Link(str(response.url), _without_token(own, response))
            left = promised(response, begin, end, self.size)
            done = 0
            for chunk in response.iter_raw():
                if done + len(chunk) > left:
                    raise BrokenAnswer("the answer is longer than it says")
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
                yield len(chunk)

    def _expired(self, link: _Link) -> _LinkExpired:
        """Forget a link, unless another thread has a newer one."""
        if self._link is link:
            self._link = None
        return _LinkExpired()

    def _check_redirect(self, response: Any) -> None:
        """Hold what the Hub says of the file against the listing."""
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


def _without_token(headers: Mapping[str, str], response: Any) -> Mapping[str, str]:
    """Return the headers that the place of an answer may see."""
    if not _is_elsewhere(response):
        return headers
    return {name: value for name, value in headers.items() if name.lower() != "authorization"}


def _is_elsewhere(response: Any) -> bool:
    """Whether a redirect led away from the Hub."""
    asked = response.history[0].url if response.history else response.url
    return (asked.host, asked.port) != (response.url.host, response.url.port)


class _LinkExpired(Exception):
    """The store takes the signed link no more: the next request asks the Hub for another."""
