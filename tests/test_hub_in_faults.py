"""What networks and servers do to a merge from the Hub: the right bits, or one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event

import huggingface_hub
import pytest
import torch

import streammerge
from streammerge import api
from streammerge.errors import HubError, ReadError, StreammergeError
from streammerge.references import parse_reference
from streammerge.storage import DownloadMode, retrying
from streammerge.storage.hub import HubStorage
from tests.support.checkpoints import write_checkpoint
from tests.support.hub import (
    Cut,
    Do,
    Drop,
    Effect,
    Hub,
    IgnoreRange,
    ShortRange,
    Status,
    Wait,
    WrongBytes,
)
from tests.support.merging import assert_nothing_like_a_model, refusal
from tests.support.preparing import prepare_average
from tests.support.remote import IDS, MODES, Pair, weights_of

BOTH = pytest.mark.parametrize("mode", MODES)
SHARDS = "*.safetensors"
PASSING: dict[str, Effect] = {
    "cut": Cut(5000),
    "dropped": Drop(),
    "503": Status(503),
    "429 with a time": Status(429, retry_after=7),
    "too late": Wait(1.5),
}
MORE_PASSING: dict[str, Effect] = {
    "cut at once": Cut(0),
    "cut late": Cut(150_000),
    "500": Status(500),
    "502": Status(502),
    "504": Status(504),
    "429": Status(429),
}


@pytest.fixture(autouse=True)
def pauses(no_waiting: list[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """We retry at once, and so does the client; a timeout comes soon."""
    seconds: list[float] = []

    def pause(length: float, stop: Event | None) -> None:
        seconds.append(length)

    monkeypatch.setattr(retrying, "pause", pause)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    return seconds


@BOTH
@pytest.mark.parametrize("effect", PASSING.values(), ids=PASSING.keys())
def test_weights_arrive_in_spite_of_what_passes(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode, effect: Effect
) -> None:
    faults = [
        hub.fault(effect, kind="download", file=SHARDS, repo="org/a", times=2, skip=3),
        hub.fault(effect, kind="download", file=SHARDS, repo="org/b", times=2, skip=1),
    ]
    streammerge.average(IDS, tmp_path / "out", download=mode)
    assert weights_of(tmp_path / "out") == pair.wanted
    assert all(fault.hits > 0 for fault in faults)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("effect", MORE_PASSING.values(), ids=MORE_PASSING.keys())
def test_weights_arrive_in_spite_of_what_else_passes(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode, effect: Effect
) -> None:
    test_weights_arrive_in_spite_of_what_passes(tmp_path, hub, pair, mode, effect)


@BOTH
@pytest.mark.parametrize("effect", [Status(503), Status(429, retry_after=1), Drop()], ids=repr)
def test_questions_are_asked_again(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode, effect: Effect
) -> None:
    faults = [hub.fault(effect, kind=kind, times=2) for kind in ("info", "tree", "resolve")]
    streammerge.average(IDS, tmp_path / "out", download=mode)
    assert weights_of(tmp_path / "out") == pair.wanted
    assert [fault.hits for fault in faults] == [2, 2, 2]


def test_a_cut_stream_goes_on_at_the_byte_where_it_stopped(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    hub.fault(Cut(100_000), kind="download", file=SHARDS, times=None)
    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted
    cut = hub.log.find("download", file=SHARDS, where=lambda e: not e.complete)
    assert len(cut) > 10
    assert hub.log.downloaded(file=SHARDS) <= 1.1 * pair.weights


def test_an_answer_that_is_short_is_completed(tmp_path: Path, hub: Hub, pair: Pair) -> None:
    fault = hub.fault(ShortRange(1000), kind="download", file=SHARDS, times=None)
    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted
    assert fault.hits > 4


def test_signed_links_are_renewed_when_they_expire(tmp_path: Path, hub: Hub, pair: Pair) -> None:
    hub.fault(Do(hub.expire_links), kind="download", file=SHARDS, skip=4, times=2)
    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted
    refused = hub.log.find("download", where=lambda e: e.status == 403)
    assert refused
    assert not hub.log.find("download", where=lambda e: e.status == 400), "the token left the Hub"


@BOTH
def test_links_that_expire_before_the_merge_begins(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode
) -> None:
    prepared = prepare_average(IDS, tmp_path / "out", download=mode)
    hub.expire_links()
    api.execute(prepared)
    assert weights_of(tmp_path / "out") == pair.wanted


def test_a_server_says_how_long_to_wait(
    tmp_path: Path, hub: Hub, pair: Pair, pauses: list[float]
) -> None:
    hub.fault(Status(429, retry_after=7), kind="download", file=SHARDS, times=1, skip=4)
    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert [round(seconds) for seconds in pauses] == [7]


def test_waits_grow_while_nothing_comes_and_begin_anew_when_something_did(
    hub: Hub, pauses: list[float]
) -> None:
    content = bytes(range(256)) * 100
    hub.create("org/x", {"x.safetensors": content})
    reader = HubStorage(parse_reference("org/x"), "", "stream").open("x.safetensors", "auto")
    hub.fault(Drop(), kind="download", times=8)
    hub.fault(Cut(100), kind="download", skip=8)
    hub.fault(Drop(), kind="download", skip=9, times=2)
    found = reader.fetch(0, len(content), memoryview(bytearray(len(content))))
    assert bytes(found) == content
    for seconds, wanted in zip(pauses, [0.5, 1, 2, 4, 8, 16, 30, 30, 0.5, 1, 2], strict=True):
        assert 0.75 * wanted <= seconds <= 1.25 * wanted


LASTING: list[tuple[DownloadMode, str, Effect, str]] = [
    ("stream", "download", Drop(), "reading org/[ab]/model.* at byte [\\d,]+ failed"),
    ("stream", "download", Status(503), "503 time and again"),
    ("stream", "download", IgnoreRange(), "does not answer ranged requests"),
    ("stream", "download", Status(403), "refuses"),
    ("cache", "download", Drop(), "cannot be reached"),
    ("cache", "download", Status(503), "failed .503."),
    ("cache", "download", Status(403), "may not"),
    ("cache", "resolve", Status(429), "too many requests"),
]


@pytest.mark.parametrize(("mode", "kind", "effect", "message"), LASTING)
def test_what_does_not_pass_is_one_clear_error_and_no_model(
    tmp_path: Path,
    hub: Hub,
    pair: Pair,
    mode: DownloadMode,
    kind: str,
    effect: Effect,
    message: str,
) -> None:
    prepared = prepare_average(IDS, tmp_path / "out", download=mode)
    hub.fault(effect, kind=kind, file=SHARDS, times=None)
    said = refusal(lambda: api.execute(prepared), message)
    assert "signature" not in said, "a signed link is a secret"
    assert_nothing_like_a_model(tmp_path / "out")
    hub.heal()
    streammerge.average(IDS, tmp_path / "out", download=mode)
    assert weights_of(tmp_path / "out") == pair.wanted


@pytest.mark.parametrize("kind", ["info", "tree"])
def test_a_hub_that_fails_for_good_is_said_before_anything_begins(
    tmp_path: Path, hub: Hub, pair: Pair, kind: str
) -> None:
    hub.fault(Status(500), kind=kind, times=None)
    refusal(lambda: streammerge.average(IDS, tmp_path / "out"), "org/a", "500")
    assert not (tmp_path / "out").exists()


def test_a_wait_that_is_too_long_is_left_to_the_user(
    tmp_path: Path, hub: Hub, pair: Pair, pauses: list[float]
) -> None:
    hub.fault(Status(429, retry_after=4000), kind="info", times=None)
    refusal(lambda: streammerge.average(IDS, tmp_path / "out"), "too many requests")
    assert pauses == []


@BOTH
def test_a_header_that_arrives_wrong_never_gives_a_model(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode
) -> None:
    # The last digit of an offset: the header stays JSON, and does not fit the file.
    content = (pair.folders[1] / "model.safetensors").read_bytes()
    at = content.index(b"]}", content.index(b"data_offsets")) - 1
    hub.fault(WrongBytes(at), kind="download", repo="org/b", file=SHARDS, times=None)
    with pytest.raises(StreammergeError):
        streammerge.average(IDS, tmp_path / "out", download=mode)
    assert_nothing_like_a_model(tmp_path / "out")


@pytest.mark.parametrize("meanwhile", ["fetched by the merge", "fetched by somebody else"])
def test_a_header_that_arrives_wrong_but_plausible_is_found_by_the_cache(
    tmp_path: Path, hub: Hub, meanwhile: str
) -> None:
    tensors = {name: torch.full((50_000,), value) for name, value in (("w0", 1.0), ("w1", 2.0))}
    folder = write_checkpoint(tmp_path / "a", tensors)
    hub.create("org/a", folder)
    right = (folder / "model.safetensors").read_bytes()
    wrong = right.replace(b'"w0"', b'"xx"').replace(b'"w1"', b'"w0"').replace(b'"xx"', b'"w1"')
    sha256 = hub.files("org/a")["model.safetensors"].sha256
    assert sha256 is not None
    assert wrong != right
    hub.objects.path(sha256).write_bytes(wrong)
    prepared = prepare_average(["org/a", folder], tmp_path / "out")
    hub.objects.path(sha256).write_bytes(right)
    if meanwhile == "fetched by somebody else":
        streammerge.average(["org/a", folder], tmp_path / "other")
    refusal(lambda: api.execute(prepared), "header", "Run the same command again")
    assert_nothing_like_a_model(tmp_path / "out")
    streammerge.average(["org/a", folder], tmp_path / "out")


def test_another_file_than_listed_is_refused(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = hub.files("org/b")["model.safetensors"]
    shard = hub.files("org/a")["model-00001-of-00003.safetensors"]
    prepared = prepare_average(IDS, tmp_path / "out", download="stream")
    hub.expire_links()
    commit = hub.repositories["org/b"].find("main")
    assert commit is not None
    monkeypatch.setitem(commit.files, "model.safetensors", shard)  # type: ignore[arg-type]
    assert listed.sha256 != shard.sha256
    with pytest.raises((HubError, ReadError), match=r"another file|ends|instead"):
        api.execute(prepared)
    assert_nothing_like_a_model(tmp_path / "out")


def test_an_interrupted_stream_goes_on_after_its_finished_shards(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    wanted = tmp_path / "by shards"
    streammerge.average(pair.folders, wanted, max_shard_size="300kB")
    hub.fault(Status(503), kind="download", file="*00003*", times=None, skip=1)
    fails: Callable[[], object] = lambda: streammerge.average(  # noqa: E731
        IDS, tmp_path / "out", download="stream", max_shard_size="300kB"
    )
    refusal(fails, "503")
    hub.heal()
    hub.log.clear()
    done = streammerge.average(IDS, tmp_path / "out", download="stream", max_shard_size="300kB")
    assert weights_of(tmp_path / "out") == weights_of(wanted)
    if done.kept:
        assert hub.log.downloaded(file=SHARDS) < pair.weights
