"""Reads begun early: in their order, by so many threads and no more, and none is forgotten."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from streammerge.errors import ReadError
from streammerge.storage import EarlyReader, connections
from streammerge.storage.connections import Connections, StreamReader
from streammerge.storage.retrying import Stopped
from streammerge.storage.wire import Wire


class Remote:
    """A remote file that notes who reads what, and may be held back or fail."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.at_once = self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.failing: set[int] = set()
        self.seconds = 0.0  # that each part takes
        self._lock = threading.Lock()

    def read_into(self, offset: int, view: memoryview, stop: threading.Event, wire: Wire) -> None:
        with self._lock:
            self.order.append(offset)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.gate.wait(10)
        time.sleep(self.seconds)
        with self._lock:
            self.at_once -= 1
        if offset in self.failing:
            raise ReadError("broken")
        view[:] = bytes((offset + i) % 251 for i in range(len(view)))


@pytest.fixture
def remote() -> Any:
    return Remote()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SHORTEST", 1000)
    monkeypatch.setattr(connections, "LONGEST", 1000)


def begin(pool: Connections, remote: Any, offset: int, length: int) -> connections.RemoteRead:
    return pool.begin(remote, offset, memoryview(bytearray(length)), threading.Event())


def test_a_read_is_cut_into_parts_that_fill_it(remote: Any) -> None:
    pool = Connections(4)
    for length in (1, 999, 1000, 1499, 1501, 10_007):
        read = begin(pool, remote, 7, length)
        assert bytes(read.wait()) == bytes((7 + i) % 251 for i in range(length))
        assert read.is_done()


def test_the_oldest_parts_are_fetched_first_by_no_more_threads_than_allowed(remote: Any) -> None:
    pool = Connections(3)
    remote.gate.clear()
    reads = [begin(pool, remote, 10_000 * i, 2000) for i in range(6)]
    time.sleep(0.1)
    assert sorted(remote.order) == [0, 1000, 10_000]
    remote.gate.set()
    for read in reads:
        read.wait()
    assert remote.most == 3
    firsts = [offset // 10_000 for offset in remote.order]
    assert all(
        abs(found - wanted) <= 1 for found, wanted in zip(firsts, sorted(firsts), strict=True)
    )


def test_no_read_is_forgotten_when_threads_end_for_want_of_work(
    remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE", 0.001)
    pool = Connections(4)
    for round_number in range(300):
        reads = [begin(pool, remote, i, 1500) for i in range(4)]
        for read in reads:
            read.wait()
        if round_number % 10 == 0:
            time.sleep(0.002)  # about when they end


def test_threads_end_when_there_is_nothing_to_do(
    remote: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_IDLE", 0.01)
    before = threading.active_count()
    begin(Connections(4), remote, 0, 4000).wait()
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_failed_part_fails_the_read_and_spares_the_rest(remote: Any) -> None:
    pool = Connections(1)
    remote.failing = {1000}
    read = begin(pool, remote, 0, 20_000)
    with pytest.raises(ReadError, match="broken"):
        read.wait()
    begin(pool, remote, 50_000, 1).wait()
    assert len(remote.order) <= 4


def test_a_read_that_is_called_off_ends_at_once(remote: Any) -> None:
    pool, stop = Connections(1), threading.Event()
    remote.gate.clear()
    read = pool.begin(remote, 0, memoryview(bytearray(5000)), stop)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        read.wait()
    assert time.monotonic() - began < 5
    remote.gate.set()


def test_a_stream_is_read_early_and_a_local_file_is_not(remote: Any) -> None:
    from streammerge.storage.local import BufferedReader

    reader = StreamReader(remote)
    assert isinstance(reader, EarlyReader)
    assert not issubclass(BufferedReader, StreamReader)
    assert not hasattr(BufferedReader, "begin")
    assert bytes(reader.fetch(3, 5, memoryview(bytearray(9)))) == bytes((3, 4, 5, 6, 7))
