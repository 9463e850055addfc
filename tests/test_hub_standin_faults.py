"""The stand-in for the Hub: every fault does to the real client what it says, and only that."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    HfFileSystem,
    constants,
    hf_hub_download,
    snapshot_download,
    upload_file,
)
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from huggingface_hub.utils import get_session

from tests.support.hub import (
    Cut,
    CutUpload,
    Do,
    Drop,
    Effect,
    Hub,
    IgnoreRange,
    LoseAnswer,
    RefuseObject,
    ShortRange,
    Slow,
    Status,
    Wait,
    WrongBytes,
)

LARGE = os.urandom(300_000)
NAME = "model.safetensors"


@pytest.fixture
def model(hub: Hub) -> str:
    hub.create("me/m", {NAME: LARGE, "config.json": "{}"})
    return "me/m"


def download(repo: str, name: str = NAME) -> bytes:
    return Path(hf_hub_download(repo, name)).read_bytes()


def ranged(repo: str, start: int, stop: int) -> bytes:
    with HfFileSystem().open(f"{repo}/{NAME}", cache_type="none") as file:
        file.seek(start)
        return file.read(stop - start)


def link_of(hub: Hub, repo: str) -> str:
    """A signed link into the store, as `resolve` gives it."""
    url = f"{hub.url}/{repo}/resolve/main/{NAME}"
    return get_session().head(url, follow_redirects=False).headers["location"]


@pytest.mark.parametrize(("after", "kept"), [(0, 0), (999, 0), (10**5, 10**5), (299_999, 299_000)])
def test_cut_closes_after_so_many_bytes(
    hub: Hub,
    model: str,
    no_waiting: list[float],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    kept: int,
) -> None:
    # The client keeps whole pieces of 10 MiB only, and asks for the rest again.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    fault = hub.fault(Cut(after), kind="download")
    assert download(model) == LARGE
    assert fault.hits == 1
    first, second = hub.log.find("download")
    assert (first.sent, first.complete, first.fault) == (after, False, "Cut")
    assert (second.sent, second.range) == (300_000 - kept, (kept, None) if kept else None)
    assert hub.log.read_twice() == after - kept
    assert no_waiting == [1]


def test_a_cut_that_does_not_heal_ends_in_an_error(
    hub: Hub, model: str, no_waiting: list[float]
) -> None:
    hub.fault(Cut(0), kind="download", file=NAME, times=None)
    with pytest.raises(httpx2.RemoteProtocolError):
        download(model)
    assert len(hub.log.find("download")) == 6
    assert download(model, "config.json") == b"{}"
    hub.heal()
    assert download(model) == LARGE


def test_drop_answers_nothing(hub: Hub, model: str, no_waiting: list[float]) -> None:
    hub.fault(Drop(), kind="download")
    assert ranged(model, 5, 10) == LARGE[5:10]
    assert [e.status for e in hub.log.find("download")] == [0, 206]
    hub.fault(Drop(), kind="commit")
    before = hub.head(model)
    with pytest.raises(httpx2.RemoteProtocolError):
        upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=model)
    assert hub.head(model) == before


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_status_fails_so_many_requests(
    hub: Hub, model: str, no_waiting: list[float], code: int
) -> None:
    hub.fault(Status(code), kind="download", times=3)
    assert ranged(model, 1000, 2000) == LARGE[1000:2000]
    assert no_waiting == [1, 2, 4]
    assert [e.status for e in hub.log.find("download")] == [code] * 3 + [206]


def test_429_says_when_to_come_again(hub: Hub, model: str, no_waiting: list[float]) -> None:
    hub.fault(Status(429, retry_after=7), kind="resolve", method="GET")
    assert ranged(model, 0, 10) == LARGE[:10]
    assert no_waiting == [8]


def test_faults_wait_for_their_turn_and_name_their_requests(
    hub: Hub, model: str, no_waiting: list[float]
) -> None:
    fault = hub.fault(Status(503), kind="download", file="*.safetensors", times=1, skip=2)
    other = hub.fault(Status(503), kind="*", repo="me/other", times=None)
    for start in range(4):
        assert ranged(model, start, start + 1) == LARGE[start : start + 1]
    found = [e.status for e in hub.log.find("download")]
    assert found == [206, 206, 503, 206, 206]
    assert (fault.hits, other.hits) == (1, 0)


def test_slow_and_wait(hub: Hub, model: str) -> None:
    # The client waits for all parts of 18,000 bytes but the last, whose end it knows beforehand.
    hub.fault(Slow(900_000), kind="download")
    begin = time.monotonic()
    assert download(model) == LARGE
    assert 0.3 <= time.monotonic() - begin < 3
    hub.fault(Wait(0.2), kind="info")
    begin = time.monotonic()
    HfApi().model_info(model)
    assert 0.2 <= time.monotonic() - begin < 2


def test_wrong_bytes_have_the_right_size_and_place(hub: Hub, model: str) -> None:
    hub.fault(WrongBytes(at=270_000, count=2), kind="download", times=None)
    wrong = bytearray(LARGE)
    wrong[270_000] ^= 0xFF
    wrong[270_001] ^= 0xFF
    assert download(model) == bytes(wrong), "the client checks sizes only"
    assert ranged(model, 269_999, 270_001) == bytes(wrong[269_999:270_001])
    assert ranged(model, 0, 270_000) == LARGE[:270_000]
    assert ranged(model, 270_002, 280_000) == LARGE[270_002:280_000]
    assert hub.read(model, NAME) == LARGE


def test_ranges_that_are_ignored_or_answered_short(hub: Hub, model: str) -> None:
    link = link_of(hub, model)
    headers = {"Range": "bytes=100-199"}
    hub.fault(IgnoreRange(), kind="download")
    answer = get_session().get(link, headers=headers)
    assert (answer.status_code, answer.content) == (200, LARGE)
    hub.fault(ShortRange(missing=60), kind="download")
    answer = get_session().get(link, headers=headers)
    assert (answer.status_code, answer.content) == (206, LARGE[100:140])
    assert answer.headers["content-range"] == "bytes 100-139/300000"
    answer = get_session().get(link, headers=headers)
    assert answer.content == LARGE[100:200]
    assert get_session().get(link, headers={"Range": "bytes=300000-"}).status_code == 416


def test_links_expire_and_the_store_takes_no_token(hub: Hub, model: str) -> None:
    link = link_of(hub, model)
    assert get_session().get(link).content == LARGE
    hub.expire_links()
    assert get_session().get(link).status_code == 403
    renewed = link_of(hub, model)
    assert get_session().get(renewed).content == LARGE
    token = {"Authorization": "Bearer hf_write"}
    assert get_session().get(renewed, headers=token).status_code == 400


def test_a_revision_that_moves_in_the_middle(hub: Hub, model: str) -> None:
    pinned = hub.head(model)
    changes = {NAME: b"other", "config.json": b'{"moved": true}'}
    hub.fault(Do(lambda: hub.commit(model, changes)), kind="download")
    folder = Path(snapshot_download(model, max_workers=1))
    assert folder.name == pinned
    assert (folder / NAME).read_bytes() == LARGE
    assert (folder / "config.json").read_bytes() == b"{}"
    assert hub.read(model, NAME) == b"other"
    stale = [CommitOperationAdd("x.txt", b"x")]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        HfApi().create_commit(model, stale, commit_message="x", parent_commit=pinned)


def test_a_lost_answer_is_a_commit_that_was_made(hub: Hub, model: str) -> None:
    before = hub.head(model)
    hub.fault(LoseAnswer(), kind="commit")
    with pytest.raises(httpx2.RemoteProtocolError):
        upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=model)
    assert hub.read(model, "x.txt") == b"x"
    assert hub.log.commits(model) == 1
    (entry,) = hub.log.find("commit")
    assert (entry.status, entry.complete, entry.commit) == (0, False, hub.head(model))
    assert hub.history(model)[0].parent == before


def test_412_on_demand(hub: Hub, model: str) -> None:
    hub.fault(Status(412), kind="commit")
    with pytest.raises(HfHubHTTPError) as error:
        upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=model)
    assert error.value.response.status_code == 412
    assert hub.log.commits() == 0


@pytest.mark.parametrize("parts", [1, 3])
def test_an_upload_that_breaks_off_is_sent_again(
    hub: Hub, no_waiting: list[float], parts: int
) -> None:
    hub.create("me/m")
    hub.part_size = len(LARGE) // parts
    hub.fault(CutUpload(50_000), kind="upload")
    upload_file(path_or_fileobj=LARGE, path_in_repo=NAME, repo_id="me/m")
    assert hub.read("me/m", NAME) == LARGE
    first, *rest = hub.log.find("upload")
    assert not first.ok
    assert 50_000 <= first.received < len(LARGE)
    assert len(rest) == parts
    assert hub.log.uploaded_twice() == []
    assert len(list(hub.objects.folder.iterdir())) == 1, "nothing is left of the first try"


def test_an_upload_whose_answer_is_lost_is_seen_to_come_twice(
    hub: Hub, no_waiting: list[float]
) -> None:
    hub.create("me/m")
    hub.fault(LoseAnswer(), kind="upload")
    upload_file(path_or_fileobj=LARGE, path_in_repo=NAME, repo_id="me/m")
    assert hub.log.uploaded() == 2 * len(LARGE)
    assert hub.log.uploaded_twice() == []
    assert not hub.log.find("upload")[0].ok


@pytest.mark.parametrize(
    ("effect", "kind", "times", "error"),
    [
        (RefuseObject(), "lfs_batch", 1, ValueError),
        (Status(400), "lfs_batch", 1, BadRequestError),
        (Status(507), "upload", 1, RuntimeError),
        (Status(500), "upload", None, RuntimeError),
        (CutUpload(1000), "upload", None, RuntimeError),
        (Status(404), "lfs_verify", 1, RuntimeError),
    ],
)
def test_a_refused_upload_leaves_the_branch_as_it_was(
    hub: Hub,
    model: str,
    no_waiting: list[float],
    effect: Effect,
    kind: str,
    times: int | None,
    error: type[Exception],
) -> None:
    before = hub.head(model)
    fault = hub.fault(effect, kind=kind, times=times)
    with pytest.raises(error):
        upload_file(path_or_fileobj=LARGE[::-1], path_in_repo="n.bin", repo_id=model)
    assert fault.hits == (times or 6)
    assert hub.head(model) == before
    assert hub.log.commits() == 0
