"""When a request to the Hub is worth another try, and how long to wait before it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any, TypeVar

from streammerge.errors import StreammergeError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
MOST_PATIENCE = 300.0
"""Seconds that a server may ask us to wait; beyond it the user should know."""
QUICK_TRIES = 4
"""Failures in a row before a question is given up; a user waits for the answer."""
LONG_TRIES = 9
"""The same in the middle of a merge, about two minutes: a router may have to come back."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_T = TypeVar("_T")


class Stopped(Exception):
    """The work was called off; nothing went wrong here."""


class BrokenAnswer(Exception):
    """An answer that does not fit the request: too short, another range, not a range at all."""


class NoAnswer(Exception):
    """A connection of our own failed before or within an answer."""


class RefusedForNow(Exception):
    """A server answered over a connection of our own that it cannot at the moment.

    Args:
        response: the answer, which has a status and headers as the client's answers have.
    """

    def __init__(self, response: Any) -> None:
        super().__init__(f"the server answers {response.status_code}")
        self.response = response


def pause(seconds: float, stop: Event | None) -> None:
    """Wait, but not longer than until `stop`."""
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise Stopped


class Patience:
    """Counts failures in a row, and waits longer after each.

    Args:
        tries: failures before giving up.
        stop: ends the waiting.
    """

    def __init__(self, tries: int, stop: Event | None = None) -> None:
        self._tries, self._stop = tries, stop
        self.failures = 0

    def renew(self) -> None:
        """Forget the failures: something went well."""
        self.failures = 0

    def wait(self, error: Exception) -> None:
        """Wait before another try.

        Raises:
            Exception: the error itself, where another try is pointless or was the last.
        """
        self.failures += 1
        asked = _asked_pause(error)
        if self.failures >= self._tries or not is_transient(error) or asked > MOST_PATIENCE:
            raise error
        # Several connections failed together; let them not come back together.
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.failures - 1))
        pause(max(asked, seconds * random.uniform(0.75, 1.25)), self._stop)


def retried(call: Callable[[], _T], tries: int = QUICK_TRIES, stop: Event | None = None) -> _T:
    """Return what the call returns, tried again after failures that pass by themselves."""
    patience = Patience(tries, stop)
    while True:
        try:
            return call()
        except (StreammergeError, Stopped):
            raise
        except Exception as error:
            patience.wait(error)


def is_transient(error: Exception) -> bool:
    """Whether the same request may go well a little later."""
    return isinstance(error, BrokenAnswer) or status_in(error) in TRANSIENT or no_answer(error)


def is_unreachable(error: Exception) -> bool:
    """Whether the Hub did not answer, or failed at answering."""
    return no_answer(error) or status_in(error) >= 500


def no_answer(error: Exception) -> bool:
    """Whether the connection failed before or within an answer."""
    from streammerge.hub import NETWORK_ERROR  # the client is loaded here and not before

    return isinstance(error, NETWORK_ERROR | NoAnswer) and not status_in(error)


def status_in(error: Exception) -> int:
    """Return the HTTP status that an error carries; 0 where there was no answer."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _asked_pause(error: Exception) -> float:
    """Return the seconds that the server asks us to wait; 0 where it says nothing."""
    if not status_in(error):
        return 0.0
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    headers = error.response.headers  # type: ignore[attr-defined]
    limit = parse_ratelimit_headers(headers)
    if status_in(error) == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = headers.get("retry-after", "").strip()
    if asked.isdecimal():
        return float(asked)
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0
