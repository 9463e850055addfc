"""Ranged requests over connections of our own, whose bytes go from the socket into the buffer.

The Hub's client hands bytes on in chunks of 64 KiB, after several copies that hold the
interpreter's lock, and decrypts record by record in Python: 2 CPU seconds a GB and more. Python's
own `http.client` needs a quarter of that (docs/measurements.md).

Only what is plain goes this way: a link that the client has followed, to an address to which the
client would connect without a proxy, with the certificates that it trusts. Whatever else somebody
has set up in the client stays with the client.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, urlsplit

from streammerge.storage.retrying import NoAnswer

_PIECE = 64 * 1024  # bytes taken from a socket at once; larger ones cost more memory and time


class Answer:
    """The answer to a request.

    Attributes:
        status_code, headers: as the client's answers have them.
    """

    def __init__(self, response: HTTPResponse) -> None:
        self.status_code, self.headers = response.status, response.headers
        self._response = response

    def read_into(self, view: memoryview) -> int:
        """Move bytes that have arrived to the start of `view`; return how many, 0 at the end.

        Raises:
            NoAnswer: the connection failed.
        """
        with _failures():
            return self._response.readinto1(view[:_PIECE])


class Wire:
    """Connections for one thread, kept open from one request to the next."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, str], HTTPConnection | None] = {}

    def reaches(self, url: str) -> bool:
        """Whether requests for this address may go this way."""
        return self._connection(urlsplit(url)) is not None

    @contextmanager
    def get(self, url: str, headers: Mapping[str, str]) -> Iterator[Answer]:
        """Send a request; the answer can be read until the end of the context.

        Raises:
            NoAnswer: the connection failed.
        """
        parts = urlsplit(url)
        connection = self._connection(parts)
        assert connection is not None, "asked for what it does not reach"
        target = parts._replace(scheme="", netloc="", fragment="").geturl()
        with _failures():
            response = _send(connection, target or "/", headers)
        try:
            yield Answer(response)
        finally:
            if response.length == 0:
                response.close()  # its connection stays open for the next request
            else:  # there may be more of it, which nobody will read
                connection.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            if connection is not None:
                connection.close()

    def _connection(self, parts: SplitResult) -> HTTPConnection | None:
        place = (parts.scheme, parts.netloc)
        if place not in self._connections:
            self._connections[place] = _connection_to(parts)
        return self._connections[place]


def _send(connection: HTTPConnection, target: str, headers: Mapping[str, str]) -> HTTPResponse:
    """Send a request; once more where a connection that was kept turns out to be closed."""
    for is_new in (connection.sock is None, True):
        try:
            connection.request("GET", target, headers=dict(headers))
            return connection.getresponse()
        except (OSError, HTTPException):
            connection.close()
            if is_new:
                raise
    raise AssertionError("a new connection fails or answers")


def _connection_to(parts: SplitResult) -> HTTPConnection | None:
    """Return a connection, not open yet; None where the client has to make it."""
    from huggingface_hub import constants

    url = parts.geturl()
    if not url.isascii() or parts.username is not None or parts.hostname is None:
        return None
    context = _clients_trust(url)
    if context is None:
        return None
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    if parts.scheme == "https":
        return HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)
    return HTTPConnection(parts.hostname, parts.port, timeout=timeout)


def _clients_trust(url: str) -> ssl.SSLContext | None:
    """Return what the client checks certificates with where it connects to an address directly.

    None where it goes through a proxy, or over anything but its library's own transport. These
    are names that the library does not publish; where one of them is gone, the answer is None too.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    try:
        transport = session._transport_for_url(session.build_request("GET", url).url)
        pool = transport._pool
        kinds = (type(transport).__name__, type(pool).__name__)
        special = pool._proxy or pool._uds or pool._local_address or pool._socket_options
        if kinds != ("HTTPTransport", "ConnectionPool") or special:
            return None
        trust = pool._ssl_context
    except AttributeError:
        return None
    return trust if isinstance(trust, ssl.SSLContext) else None


@contextmanager
def _failures() -> Iterator[None]:
    """Turn the ways in which a connection can fail into one."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise NoAnswer(str(error) or type(error).__name__) from error
