"""Requests past the client: where they may go, with whose trust, what of a connection is kept."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import trustme
from huggingface_hub import close_session, get_session, set_client_factory
from huggingface_hub.utils import _http

import streammerge
from streammerge.storage.retrying import NoAnswer
from streammerge.storage.wire import Wire
from tests.support.hub import Cut, Hub
from tests.support.remote import IDS, Pair, weights_of

DATA = bytes(i * 7 % 251 for i in range(300_000))
CLIENT: Any = type(get_session())
close_session()


class Handler(BaseHTTPRequestHandler):
    """Serves ranges of DATA over HTTP/1.1."""

    protocol_version = "HTTP/1.1"
    server: Server

    def handle(self) -> None:
        self.server.connections += 1
        super().handle()

    def do_GET(self) -> None:
        first, last = map(int, self.headers["range"].removeprefix("bytes=").split("-"))
        body = DATA[first : last + 1]
        self.server.seen.append((self.path, self.headers.get("authorization")))
        self.send_response(206)
        self.send_header("content-range", f"bytes {first}-{last}/{len(DATA)}")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.server.stalls:
            self.server.stalls.pop()
            self.server.released.wait(10)
        self.wfile.write(body)
        self.close_connection = self.server.forgetful

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Counts connections. A forgetful one closes each after one answer, without saying so."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections, self.forgetful = 0, False
        self.seen: list[tuple[str, str | None]] = []
        self.stalls: list[None] = []
        self.released = threading.Event()
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/file?signed=1"

    def handle_error(self, *arguments: object) -> None:
        """Say nothing: clients that do not trust us hang up."""


@contextmanager
def serving(certificate: trustme.LeafCert | None = None) -> Iterator[Server]:
    with Server() as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.scheme = "https"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def clients_own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy, and the client's own factory again after the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    close_session()
    yield
    set_client_factory(_http.default_client_factory)


def fetch(wire: Wire, url: str, begin: int, end: int) -> bytes:
    view = memoryview(bytearray(end - begin))
    done = 0
    with wire.get(url, {"Range": f"bytes={begin}-{end - 1}"}) as answer:
        assert answer.status_code == 206
        assert answer.headers["Content-Length"] == str(end - begin)
        while count := answer.read_into(view[done:]):
            done += count
    return bytes(view[:done])


def test_a_connection_serves_many_requests(server: Server) -> None:
    with closing(Wire()) as wire:
        assert wire.reaches(server.url)
        for begin, end in ((0, 1), (5, 200_005), (299_999, 300_000), (0, 300_000)):
            assert fetch(wire, server.url, begin, end) == DATA[begin:end]
    assert server.connections == 1
    assert {path for path, _ in server.seen} == {"/file?signed=1"}


def test_a_connection_that_was_closed_meanwhile_is_replaced_unseen(server: Server) -> None:
    server.forgetful = True
    with closing(Wire()) as wire:
        for begin in range(5):
            assert fetch(wire, server.url, begin, begin + 100) == DATA[begin : begin + 100]
    assert server.connections == 5


def test_an_answer_that_nobody_reads_to_its_end_does_not_reach_the_next(server: Server) -> None:
    with closing(Wire()) as wire:
        with wire.get(server.url, {"Range": "bytes=0-299999"}) as answer:
            assert answer.read_into(memoryview(bytearray(1000))) > 0
        assert fetch(wire, server.url, 7, 1007) == DATA[7:1007]
    assert server.connections == 2


def test_a_server_that_is_silent_is_given_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    server.stalls = [None]
    with closing(Wire()) as wire:
        with pytest.raises(NoAnswer, match="timed out"):
            fetch(wire, server.url, 0, 100)
        assert fetch(wire, server.url, 0, 100) == DATA[:100]


def test_nobody_there_is_no_answer() -> None:
    with serving() as gone:
        url = gone.url
    with closing(Wire()) as wire, pytest.raises(NoAnswer):
        fetch(wire, url, 0, 10)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_what_goes_through_a_proxy_stays_with_the_client(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with closing(Wire()) as wire:
        assert not wire.reaches(server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    with closing(Wire()) as wire:
        assert wire.reaches(server.url)
    assert server.seen == []


def test_a_transport_of_the_users_own_stays_in_use(server: Server) -> None:
    plain: Any = type(get_session()._transport)  # type: ignore[attr-defined]

    class Logging(plain):  # type: ignore[misc]
        """Stands for what people add: logs, retries, other names for hosts."""

    for options in ({"transport": Logging()}, {"proxy": "http://127.0.0.1:9"}):
        set_client_factory(lambda options=options: CLIENT(**options))  # type: ignore[misc]
        with closing(Wire()) as wire:
            assert not wire.reaches(server.url)
    set_client_factory(lambda: CLIENT(transport=plain(local_address="127.0.0.1")))
    with closing(Wire()) as wire:
        assert not wire.reaches(server.url)


@pytest.mark.parametrize(
    "url", ["http://user:word@127.0.0.1/x", "http://bücher.example/x", "http:///x"]
)
def test_odd_addresses_are_the_clients(url: str) -> None:
    with closing(Wire()) as wire:
        assert not wire.reaches(url)


def test_certificates_are_trusted_as_the_client_trusts_them() -> None:
    ours, other = trustme.CA(), trustme.CA()
    with serving(ours.issue_cert("127.0.0.1")) as server:
        for authority in (ours, other):
            context = ssl.create_default_context()
            authority.configure_trust(context)
            set_client_factory(lambda context=context: CLIENT(verify=context))  # type: ignore[misc]
            with closing(Wire()) as wire:
                assert wire.reaches(server.url)
                if authority is ours:
                    assert fetch(wire, server.url, 0, 300_000) == DATA
                    assert fetch(wire, server.url, 9, 100_000) == DATA[9:100_000]
                    assert server.connections == 1
                else:
                    with pytest.raises(NoAnswer, match="CERTIFICATE_VERIFY_FAILED"):
                        fetch(wire, server.url, 0, 10)


def client_downloads(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses that the client asks for from now on."""
    asked: list[str] = []
    stream = CLIENT.stream

    def noted(self: Any, method: str, url: str, **options: Any) -> Any:
        asked.append(url)
        return stream(self, method, url, **options)

    monkeypatch.setattr(CLIENT, "stream", noted)
    return asked


@pytest.mark.parametrize("through_a_proxy", [False, True])
def test_a_merge_asks_the_client_for_links_alone_unless_it_must(
    tmp_path: Path,
    hub: Hub,
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    through_a_proxy: bool,
) -> None:
    if through_a_proxy:
        monkeypatch.setattr("streammerge.storage.wire._clients_trust", lambda url: None)
    asked = client_downloads(hub, monkeypatch)
    hub.fault(Cut(5000), kind="download", file="*.safetensors", times=3, skip=6)
    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted
    store_asked = [url for url in asked if not url.startswith(hub.url)]
    assert bool(store_asked) == through_a_proxy
    ranges = [e.range for e in hub.log.find("download", file="*.safetensors") if e.range]
    assert len(ranges) > 6


def test_stores_see_who_we_are_but_no_token(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, Mapping[str, str]]] = []
    get = Wire.get

    def noted(wire: Wire, url: str, headers: Mapping[str, str]) -> Any:
        seen.append((url, {name.lower(): value for name, value in headers.items()}))
        return get(wire, url, headers)

    monkeypatch.setattr(Wire, "get", noted)
    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted
    assert seen
    for url, headers in seen:
        assert "streammerge/" in headers["user-agent"]
        assert ("authorization" in headers) == url.startswith(hub.url)
