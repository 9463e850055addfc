"""The stand-in for the Hub, proved against the real client: files, ranges, the log."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import (
    HfApi,
    HfFileSystem,
    create_repo,
    get_safetensors_metadata,
    hf_hub_download,
    snapshot_download,
    upload_file,
    whoami,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.support.checkpoints import random_tensors, write_checkpoint
from tests.support.hub import READ, Hub, hub_environment
from tests.support.hub.client import running_hub
from tests.support.hub.server import Thread, free_port

LARGE = os.urandom(300_000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_it_starts_and_stops_fast(tmp_path: Path) -> None:
    begin = time.monotonic()
    with running_hub(tmp_path):
        assert whoami()["name"] == "me"
    assert time.monotonic() - begin < 0.5


def test_upload_file_and_read_it_back(hub: Hub) -> None:
    create_repo("me/m")
    upload_file(path_or_fileobj=LARGE, path_in_repo="sub/model.safetensors", repo_id="me/m")
    upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/m")
    assert [c.title for c in hub.history("me/m")][1:] == [
        "Upload sub/model.safetensors with huggingface_hub",
        "initial commit",
    ]
    assert hub.read("me/m", "sub/model.safetensors") == LARGE
    assert hub.files("me/m")["sub/model.safetensors"].sha256 == sha256(LARGE)
    assert not hub.files("me/m")["config.json"].is_large
    folder = Path(snapshot_download("me/m"))
    assert (folder / "sub/model.safetensors").read_bytes() == LARGE
    assert (folder / "config.json").read_bytes() == b"{}"
    hub.log.clear()
    snapshot_download("me/m")
    assert hub.log.downloaded() == 0


def test_trees_pages_and_paths(hub: Hub) -> None:
    files = {f"a/{i}.txt": str(i) for i in range(7)} | {"a/b/w.safetensors": LARGE, "r.txt": "r"}
    hub.create("me/m", files)
    hub.page_size = 3
    api = HfApi()
    found = {f.path: f for f in api.list_repo_tree("me/m", recursive=True, expand=True)}
    assert found.keys() == {*files, "a", "a/b", ".gitattributes"}
    assert found["a/b/w.safetensors"].lfs.sha256 == sha256(LARGE)
    assert found["a/b/w.safetensors"].last_commit.oid == hub.head("me/m")
    assert found[".gitattributes"].last_commit.title == "initial commit"
    assert {f.path for f in api.list_repo_tree("me/m")} == {"a", "r.txt", ".gitattributes"}
    assert {f.path for f in api.list_repo_tree("me/m", "a/b")} == {"a/b/w.safetensors"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("me/m", "none"))
    known = api.get_paths_info("me/m", ["a/b", "r.txt", "none"])
    assert [f.path for f in known] == ["a/b", "r.txt"]
    siblings = api.model_info("me/m", files_metadata=True).siblings or []
    sizes = {s.rfilename: s.size for s in siblings if s.rfilename != ".gitattributes"}
    assert sizes == {path: len(content) for path, content in files.items()}


def test_ranges_of_large_and_small_files(hub: Hub) -> None:
    small = b"0123456789"
    hub.create("me/m", {"model.safetensors": LARGE, "small.txt": small})
    files = HfFileSystem()
    for name, content, start, stop in (
        ("model.safetensors", LARGE, 100_000, 200_001),
        ("model.safetensors", LARGE, 299_999, 300_000),
        ("small.txt", small, 3, 7),
    ):
        with files.open(f"me/m/{name}", cache_type="none") as file:
            file.seek(start)
            assert file.read(stop - start) == content[start:stop]
        assert hub.log.ranges(name)[-1] == (start, stop)
    assert hub.log.downloaded(file="model.safetensors") == 100_002
    last = hub.log.find("download", file="model.safetensors")[-1]
    assert (last.status, last.sent, last.repo, last.complete) == (206, 1, "me/m", True)
    assert hub.log.read_twice() == 0


def test_the_store_is_another_host_and_gets_no_token(hub: Hub) -> None:
    hub.create("me/m", {"model.safetensors": LARGE}, private=True)
    hf_hub_download("me/m", "model.safetensors")
    (entry,) = hub.log.find("download")
    assert entry.user is None
    assert "localhost" in hub.store_url
    assert "localhost" not in hub.url


def test_headers_of_a_checkpoint_are_read_by_range(hub: Hub, tmp_path: Path) -> None:
    tensors = random_tensors(1)
    hub.create("org/model", write_checkpoint(tmp_path / "m", tensors, shards=3))
    metadata = get_safetensors_metadata("org/model")
    assert metadata.sharded
    assert metadata.weight_map.keys() == tensors.keys()
    found = {n: t for file in metadata.files_metadata.values() for n, t in file.tensors.items()}
    assert {n: t.shape for n, t in found.items()} == {n: [*t.shape] for n, t in tensors.items()}
    assert set(hub.log.ranges("*.safetensors")) == {(0, 100_001)}


def test_what_the_log_counts(hub: Hub) -> None:
    hub.create("me/m", {"model.safetensors": LARGE, "small.txt": b"0123456789"})
    hub.create("me/other", {"model.safetensors": LARGE})
    for _ in range(2):
        hf_hub_download("me/m", "model.safetensors", force_download=True)
    hf_hub_download("me/other", "model.safetensors")
    hf_hub_download("me/m", "small.txt")
    log, size = hub.log, len(LARGE)
    assert log.downloaded() == 3 * size + 10
    assert log.downloaded(repo="me/m") == 2 * size + 10
    assert log.downloaded(repo="me/m", file="*.txt") == 10
    assert log.downloaded() <= log.moved() < log.downloaded() + 5000
    assert log.read_twice() == log.read_twice(repo="me/m") == size
    assert log.ranges("model.safetensors", repo="me/m") == [(0, None)] * 2
    assert {e.kind for e in log} == {"resolve", "download"}
    assert "small.txt" in str(log)
    for _ in range(2):
        get_session().put(hub.signed(f"/me/m/{sha256(LARGE)}"), content=LARGE).raise_for_status()
    assert log.uploaded_twice() == [sha256(LARGE)]
    wrong = get_session().put(hub.signed(f"/me/m/{sha256(b'other')}"), content=LARGE)
    assert wrong.status_code == 400


def test_without_a_server_there_is_no_network(hub: Hub, no_waiting: list[float]) -> None:
    hub.create("me/m", {"config.json": "{}", "other.json": "{}"})
    hf_hub_download("me/m", "config.json")
    hub.stop()
    assert Path(hf_hub_download("me/m", "config.json")).read_text() == "{}", "from the cache"
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("me/m", "other.json")


def test_a_subprocess_finds_it(hub: Hub, tmp_path: Path) -> None:
    hub.create("me/m", {"config.json": "{}"}, private=True)
    code = "import huggingface_hub as h; print(h.hf_hub_download('me/m', 'config.json'))"
    run = [sys.executable, "-W", "error", "-c", code]
    for token, status in (READ, 0), (None, 1):
        environment = hub_environment(hub, tmp_path / str(status), token)
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert str(tmp_path) in done.stdout or "RepositoryNotFoundError" in done.stderr


def test_a_stand_in_that_stops_leaves_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: left.append(str(raised.exc_value)))

    def knock(address: tuple[str, int], clients: list[socket.socket]) -> None:
        with contextlib.suppress(OSError):
            for _ in range(300):
                clients.append(socket.create_connection(address))

    async def silent(scope: object, receive: object, send: object) -> None:
        """Answer nobody."""

    for _ in range(10):
        listener = free_port()
        address, stand_in = listener.getsockname(), Thread(silent, [listener])
        clients: list[socket.socket] = []
        knocking = threading.Thread(target=knock, args=(address, clients))
        knocking.start()
        time.sleep(0.003)
        stand_in.stop()
        knocking.join()
        for client in clients:
            client.close()
    gc.collect()
    assert left == []
