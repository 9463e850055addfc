"""Streams against plain downloads from the same server in the same run; their memory."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import get_session, hf_hub_url

import streammerge
from streammerge.storage.connections import CONNECTIONS
from tests.support.big import sparse_checkpoint
from tests.support.cli import run, start
from tests.support.hub import WRITE, Hub, Slow
from tests.support.merging import sizes_in
from tests.support.remote import IDS, MODES
from tests.test_memory import anonymous

pytestmark = pytest.mark.slow
BYTES = 96_000_000
PER_CONNECTION = 2_000_000  # bytes a second; the processors of a test machine are no limit then


@pytest.fixture
def large(tmp_path: Path, hub: Hub) -> None:
    for repo in IDS:
        hub.create(repo, sparse_checkpoint(tmp_path / repo, BYTES))


def plain_rate(seconds: float) -> float:
    """Bytes a second of as many plain downloads as we have connections, all at once."""
    received = [0] * CONNECTIONS

    def download(number: int) -> None:
        url = hf_hub_url(IDS[number % 2], "model.safetensors")
        headers = {"authorization": f"Bearer {WRITE}"}
        with get_session().stream("GET", url, headers=headers) as response:
            for chunk in response.iter_raw():
                received[number] += len(chunk)
                if time.perf_counter() > end:
                    return

    begin = time.perf_counter()
    end = begin + seconds
    threads = [threading.Thread(target=download, args=(n,)) for n in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(received) / (time.perf_counter() - begin)


def test_a_stream_is_nearly_as_fast_as_plain_downloads(
    tmp_path: Path, hub: Hub, large: None
) -> None:
    hub.fault(Slow(PER_CONNECTION), kind="download", file="*.safetensors", times=None)
    shares = []
    for attempt in range(3):  # others may use the machine meanwhile
        plain = plain_rate(3.0)
        result = streammerge.average(IDS, tmp_path / str(attempt), download="stream")
        shares.append(2 * BYTES / result.seconds / plain)
        if shares[-1] >= 0.8:
            return
    pytest.fail(f"a stream reached {shares} of what plain downloads did")


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is read from /proc")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("budget", ["least", "512MiB"])
def test_memory_is_bounded_on_the_way_from_the_hub(
    tmp_path: Path, hub: Hub, large: None, mode: str, budget: str
) -> None:
    arguments = ["average", *IDS, "-o", tmp_path / "out", "--download", mode, "--memory"]
    if budget == "least":
        budget = str(max(sizes_in(run(*arguments, "1MiB").err)))
    process = start(*arguments, budget, "--quiet")
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.005)
    _, err = process.communicate()
    assert process.returncode == 0, err
    allowed = 512 * 2**20 if budget == "512MiB" else int(budget)
    assert peak <= allowed, f"{peak / 2**20:.0f} MiB used, {allowed / 2**20:.0f} allowed"
