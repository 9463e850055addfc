"""What every store promises, whatever its kind: see `streammerge.storage`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from threading import Event

import huggingface_hub
import pytest

from streammerge.buffers import allocate
from streammerge.errors import CheckpointError, ReadError, StreammergeError
from streammerge.references import parse_reference
from streammerge.storage import Storage
from streammerge.storage.hub import HubStorage
from streammerge.storage.local import LocalStorage
from streammerge.windows import room_for
from tests.support.hub import Hub

KINDS = ("local", "hub cache", "hub stream", "hub offline", "hub subfolder")
LARGE = bytes(range(256)) * 1900 + b"the end"
FILES = {
    "model-00001-of-00002.safetensors": LARGE,
    "model-00002-of-00002.safetensors": LARGE[::-1],
    "config.json": b'{"a": 1}',
    "empty.txt": b"",
    "1_Pooling/config.json": b"{}",
    "1_Pooling/deeper/x.json": b"[]",
}
WEIGHTS = "model-00001-of-00002.safetensors"


@pytest.fixture(params=KINDS)
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    """The same files in one kind of store."""
    if request.param == "local":
        for path, content in FILES.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        return LocalStorage(tmp_path)
    prefix = "in/side/" if request.param == "hub subfolder" else ""
    hub.create("org/a", {prefix + path: content for path, content in FILES.items()})
    if prefix:
        return HubStorage(parse_reference("org/a:in/side"), "in/side")
    if request.param == "hub offline":
        huggingface_hub.snapshot_download("org/a")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    mode = "stream" if request.param == "hub stream" else "cache"
    return HubStorage(parse_reference("org/a"), "", mode)  # type: ignore[arg-type]


def fetch(storage: Storage, path: str, offset: int, length: int) -> bytes:
    reader = storage.open(path, "auto")
    try:
        return bytes(reader.fetch(offset, length, allocate(room_for(length))))
    finally:
        reader.close()


def test_listing_gives_the_files_of_one_folder_with_their_sizes(storage: Storage) -> None:
    top = {path: len(content) for path, content in FILES.items() if "/" not in path}
    assert {p: n for p, n in storage.list().items() if p != ".gitattributes"} == top
    assert storage.list("1_Pooling") == {"1_Pooling/config.json": 2}
    with pytest.raises(CheckpointError):
        storage.list("nowhere")


def test_an_identity_is_stable_and_tells_the_size(storage: Storage) -> None:
    for path, content in FILES.items():
        found = storage.identity(path)
        assert found == storage.identity(path)
        assert found.size == len(content)
        assert found.version
        if found.digest.startswith("sha256:"):
            assert found.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_reading_gives_the_bytes_and_fewer_only_at_the_end(storage: Storage) -> None:
    end = len(LARGE)
    for offset, length in ((0, None), (5, None), (0, 8), (8, 300), (100_000, 5), (end - 3, 100)):
        for path, content in FILES.items():
            stop = None if length is None else offset + length
            assert storage.read(path, offset, length) == content[offset:stop]
    assert storage.read(WEIGHTS, 9**9, 4) == b""


def test_reads_in_any_order_agree(storage: Storage) -> None:
    for offset, length in ((8, 70_000), (0, 8), (0, 9000), (8, 70_000), (300_000, 10), (0, 1)):
        assert storage.read(WEIGHTS, offset, length) == LARGE[offset : offset + length]


def test_ranges_are_what_was_asked_for(storage: Storage) -> None:
    for offset in (0, 1, 4095, 4096, 123_457):
        for length in (1, 4096, 131_072, 200_001):
            assert fetch(storage, WEIGHTS, offset, length) == LARGE[offset : offset + length]


def test_a_reader_may_be_asked_in_any_order(storage: Storage) -> None:
    reader = storage.open(WEIGHTS, "auto")
    buffer = allocate(room_for(150_000))
    for offset in (200_000, 0, 100_003, 0):
        assert bytes(reader.fetch(offset, 150_000, buffer)) == LARGE[offset : offset + 150_000]
    assert reader.mode in ("direct", "mmap", "buffered", "stream")
    reader.close()


def test_a_range_beyond_the_end_is_an_error_and_never_short(storage: Storage) -> None:
    for offset in (len(LARGE) - 5, len(LARGE), len(LARGE) + 10_000):
        for length in (6, 200_000):
            with pytest.raises(ReadError, match="ends before"):
                fetch(storage, WEIGHTS, offset, length)


def test_a_missing_file_is_an_error_that_names_it(storage: Storage) -> None:
    calls: list[Callable[[], object]] = [
        lambda: storage.identity("nothing.safetensors"),
        lambda: storage.read("nothing.json"),
        lambda: storage.read("nothing.safetensors", 0, 8),
        lambda: storage.open("nothing.safetensors", "auto"),
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match="nothing"):
            call()


def test_a_file_name_leads_back_to_the_store(storage: Storage) -> None:
    assert storage.label in storage.name(WEIGHTS)
    found = parse_reference(storage.name(WEIGHTS))
    assert found.is_local or found.subfolder.endswith(WEIGHTS)


def test_what_is_pending_is_done_once(storage: Storage) -> None:
    pending = storage.pending(WEIGHTS)
    if pending is not None:
        fetched: list[int] = []
        missing = pending.missing
        assert missing in (0, len(LARGE))
        assert pending.file == WEIGHTS
        assert pending.run(fetched.append, Event()) == []
        assert sum(fetched) == missing
        assert pending.missing == 0
    assert storage.pending(WEIGHTS) is None
    assert fetch(storage, WEIGHTS, 7, 50_000) == LARGE[7:50_007]


def test_errors_are_for_people(storage: Storage) -> None:
    with pytest.raises(StreammergeError) as caught:
        storage.read("no\x1bthing.json")
    assert "\x1b" not in str(caught.value)
    assert caught.value.remedy
