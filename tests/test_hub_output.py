"""A merge that goes straight to the Hub: two shards on the disk, and a way back after any end."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

import streammerge
from streammerge.errors import DiskSpaceError, HubError
from streammerge.outputs import WrittenShard
from streammerge.outputs.hub_uploads import Uploads
from streammerge.outputs.shardfile import DirectoryShard
from streammerge.storage import retrying
from tests.support.checkpoints import write_checkpoint
from tests.support.crashes import killed_at
from tests.support.hub import Do, Hub, Status, Wait
from tests.support.targets import REPO, SHARDS, Merged, files_of, files_on, merge_once

NAMES_THE_COMMAND = {"streammerge.json", "README.md"}
OUT = f"hf://{REPO}"
WITH_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
pytestmark = []
if sys.version_info >= (3, 12):  # the child only merges and dies; it shares no lock with a thread
    pytestmark = [pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


def merge(merged: Merged) -> streammerge.Result:
    return streammerge.average(merged.models, OUT, **SHARDS)


def assert_whole(hub: Hub, merged: Merged) -> None:
    found, wanted = files_on(hub), files_of(merged.folder)
    assert found.keys() == wanted.keys()
    assert [n for n in wanted if found[n] != wanted[n] and n not in NAMES_THE_COMMAND] == []


def staged() -> list[Path]:
    return sorted(Path(os.environ["HF_HOME"]).rglob("*.partial"))


def on_disk() -> int:
    """Bytes that the shards on their way take."""
    sizes = []
    for path in staged():
        try:
            sizes.append(path.stat().st_blocks * 512)
        except FileNotFoundError:  # sent and removed just now
            continue
    return sum(sizes)


# The disk


@pytest.mark.parametrize("seconds", [0.0, 0.15], ids=["fast", "slow"])
@pytest.mark.parametrize(
    "rows", [[64] * 6, [64, 1, 64, 2, 64, 64, 1, 1, 64], [5] * 30], ids=["equal", "uneven", "many"]
)
def test_no_more_than_two_shards_lie_on_the_disk(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    rows: list[int],
) -> None:
    tensors = {f"t{i:02}.weight": torch.ones(n, 8192) * i for i, n in enumerate(rows)}
    models = [str(write_checkpoint(tmp_path / name, tensors)) for name in "ab"]
    if seconds:
        hub.fault(Wait(seconds), kind="upload", times=None)
    most = 0
    original = DirectoryShard.write

    def write(self: DirectoryShard, *args: int) -> None:
        nonlocal most
        original(self, *args)
        most = max(most, on_disk())

    monkeypatch.setattr(DirectoryShard, "write", write)
    done = streammerge.average(models, OUT, max_shard_size="2MB")
    assert len(done.shards) == len([s for s in files_on(hub) if s.endswith(".safetensors")])
    largest = max(shard.bytes for shard in done.shards)
    blocks = 4 * 4096  # each file takes whole blocks of the file system
    assert 0 < most <= 2 * largest + blocks, f"{most / largest:.2f} shards"
    assert staged() == []
    assert on_disk() == 0


def test_a_cache_without_room_is_refused_before_anything(
    hub: Hub, merged: Merged, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    free = shutil._ntuple_diskusage(10**9, 10**9, 50_000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DiskSpaceError, match=r"84\.9 KB.*50 KB free[\s\S]*HF_HOME.*max-shard-size"):
        merge(merged)
    assert not hub.repositories


def test_what_a_killed_merge_has_left_is_removed_by_the_next(hub: Hub, merged: Merged) -> None:
    folder = Path(os.environ["HF_HOME"]) / "assets/streammerge/uploads/killed"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.partial").write_bytes(b"x")
    merge(merged)
    assert staged() == []


# Uploads, by themselves


def shard(number: int, size: int = 10) -> WrittenShard:
    return WrittenShard(f"{number}", size, "")


def test_writes_wait_for_room_and_go_on_when_a_file_is_sent() -> None:
    sent, may_go = list[str](), threading.Semaphore(0)

    def send(some: WrittenShard, _: threading.Event) -> None:
        may_go.acquire()
        sent.append(some.file)

    uploads = Uploads(send, limit=20)
    uploads.reserve(10)
    uploads.put(shard(1))
    uploads.reserve(10)
    uploads.put(shard(2))
    writer = threading.Thread(target=uploads.reserve, args=(1,), daemon=True)
    writer.start()
    writer.join(0.1)
    assert writer.is_alive(), "two shards lie there, and a third was begun"
    may_go.release()
    writer.join(10)
    assert not writer.is_alive()
    assert sent == ["1"]
    may_go.release()
    uploads.finish()
    assert sent == ["1", "2"]
    uploads.stop()


def test_with_nothing_to_send_a_write_does_not_wait() -> None:
    uploads = Uploads(lambda shard, stop: None, limit=20)
    for _ in range(10):
        uploads.reserve(10)
    uploads.stop()


@pytest.mark.parametrize("act", [lambda u: u.reserve(100), lambda u: u.finish()])
def test_a_failure_wakes_whoever_waits(act: Callable[[Uploads], None]) -> None:
    def send(_: WrittenShard, stop: threading.Event) -> None:
        time.sleep(0.05)
        raise HubError("gone")

    uploads = Uploads(send, limit=20)
    uploads.reserve(10)
    uploads.put(shard(1))
    with pytest.raises(HubError, match="gone"):
        act(uploads)
    for later in (lambda: uploads.put(shard(2)), lambda: uploads.reserve(1), uploads.finish):
        with pytest.raises(HubError, match="gone"):
            later()


def test_to_stop_wakes_whoever_waits_and_sends_nothing_more() -> None:
    sent, may_go = list[str](), threading.Event()

    def send(some: WrittenShard, _: threading.Event) -> None:
        may_go.wait(10)
        sent.append(some.file)

    uploads = Uploads(send, limit=15)
    for number in (1, 2):
        uploads.reserve(1)
        uploads.put(shard(number))
    writer = threading.Thread(target=uploads.reserve, args=(100,), daemon=True)
    writer.start()
    uploads.stop()
    writer.join(10)
    assert not writer.is_alive()
    may_go.set()
    uploads.join()
    assert sent in ([], ["1"])  # the first may be on its way when it is stopped


# Interruptions


def test_a_failure_while_merging_keeps_what_was_sent(
    hub: Hub, merged: Merged, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DirectoryShard.finish
    calls = []

    def finish(self: DirectoryShard) -> None:
        calls.append(1)
        while len(calls) == 3 and len(staged()) > 1:
            time.sleep(0.01)  # until what was finished before is sent
        if len(calls) == 3:
            raise HubError("the third shard fails")
        original(self)

    monkeypatch.setattr(DirectoryShard, "finish", finish)
    with pytest.raises(HubError, match="third") as failure:
        merge(merged)
    assert "goes on after them" in "".join(failure.value.__notes__)
    monkeypatch.undo()
    assert files_on(hub) == {}
    assert merge(merged).kept == 2
    assert_whole(hub, merged)
    assert hub.log.uploaded_twice() == []


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT interrupt this process: a shell has what it starts with & ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_does_not_wait_for_a_slow_upload(hub: Hub, merged: Merged) -> None:
    hub.fault(Do(lambda: os.kill(os.getpid(), signal.SIGINT)), kind="upload")
    hub.fault(Wait(12), kind="upload", times=None)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        merge(merged)
    assert time.monotonic() - begun < 10
    assert files_on(hub) == {}
    assert staged() == []
    for thread in threading.enumerate():  # its client would close the session of later tests
        if thread.name == "uploader":
            thread.join(30)


@WITH_FORK
@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_changes_of_a_file(hub: Hub, merged: Merged, step: int) -> None:
    for number in range(0, 400, step):
        killed = killed_at(number, lambda: merge(merged))
        after_a_kill(hub, merged)
        if not killed:
            print(f"killed at {-(-number // step)} changes")
            return
    pytest.fail("the merge never came to its end")


@WITH_FORK
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_requests(hub: Hub, merged: Merged, step: int) -> None:
    number = 0
    while killed_at_request(hub, number, lambda: merge(merged)):
        after_a_kill(hub, merged)
        number += step
    print(f"killed at {-(-number // step)} requests")
    assert number > 12, "a merge of three shards asks more than that"


def killed_at_request(hub: Hub, number: int, action: Callable[[], object]) -> bool:
    """Run an action in a child that is killed when its request of a number arrives."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    fault = hub.fault(Do(lambda: os.kill(child, signal.SIGKILL)), skip=number)
    os.waitpid(child, 0)
    hub.heal()
    return bool(fault.hits)


def after_a_kill(hub: Hub, merged: Merged) -> None:
    """Nothing or all of it is on the Hub, and a second run makes it whole; then all is undone."""
    if REPO in hub.repositories and files_on(hub):
        assert_whole(hub, merged)
    merge(merged)
    assert_whole(hub, merged)
    assert len(hub.history(REPO)) == 2
    assert hub.log.uploaded_twice() == []
    assert staged() == []
    hub.repositories.clear()
    hub.log.clear()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_failure_of_the_client_itself_ends_the_push(
    hub: Hub, merged: Merged, monkeypatch: pytest.MonkeyPatch, wrapped: bool
) -> None:
    """As where its session was closed: a RuntimeError, alone or as the cause of another one."""

    def fail(*_: object, **__: object) -> None:
        closed = RuntimeError("the client has been closed")
        if not wrapped:
            raise closed
        raise RuntimeError("Error while uploading 'model.safetensors' to the Hub.") from closed

    monkeypatch.setattr(HfApi, "preupload_lfs_files", fail)
    with pytest.raises(HubError, match="the client has been closed"):
        merge(merged)


def test_a_failure_of_the_hub_names_shard_and_repository(
    hub: Hub, merged: Merged, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "pause", lambda seconds, stop: None)
    hub.fault(Status(500), kind="upload", times=None, skip=1)
    with pytest.raises(HubError) as failure:
        merge(merged)
    assert re.search(
        r"upload model-0000[123]-of-00003.safetensors to me/merged", str(failure.value)
    )
