"""The cache of huggingface_hub: every file checked once, wrong ones replaced, and no network."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest

import streammerge
from streammerge import api
from streammerge.errors import CheckpointError, DiskSpaceError
from streammerge.storage import DownloadMode, hub_cache, retrying
from tests.support.cli import in_process
from tests.support.hub import Hub, Status, WrongBytes
from tests.support.merging import assert_nothing_like_a_model, refusal
from tests.support.preparing import prepare_average
from tests.support.remote import IDS, MODES, Pair, weights_of

BOTH = pytest.mark.parametrize("mode", MODES)
WEIGHTS = "model.safetensors"
Usage = namedtuple("Usage", "total used free")


def cached(repo: str, file: str) -> Path:
    """Where the client keeps a file of the newest commit."""
    found = huggingface_hub.try_to_load_from_cache(repo, file)
    assert isinstance(found, str), f"{file} is not in the cache"
    return Path(found)


def flip(path: Path, at: int = -1000) -> None:
    """Change one byte of a file, whose size stays."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.resolve().write_bytes(content)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("where", ["at the start", "in the data"])
def test_wrong_bytes_of_the_right_size_are_downloaded_again(
    tmp_path: Path, hub: Hub, pair: Pair, where: str
) -> None:
    prepared = prepare_average(IDS, tmp_path / "out")
    at = 100 if where == "at the start" else 500_000
    hub.fault(WrongBytes(at), kind="download", repo="org/b", file=WEIGHTS)
    result = api.execute(prepared)
    assert weights_of(tmp_path / "out") == pair.wanted
    assert any("org/b/model.safetensors as it arrived" in note for note in result.notes)


def test_bytes_that_are_always_wrong_are_refused_and_not_kept(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    prepared = prepare_average(IDS, tmp_path / "out")
    hub.fault(WrongBytes(500_000), kind="download", repo="org/b", file=WEIGHTS, times=None)
    sha256 = hub.files("org/b")[WEIGHTS].sha256
    assert sha256 is not None
    refusal(lambda: api.execute(prepared), "org/b/model.safetensors", sha256, "proxy")
    assert_nothing_like_a_model(tmp_path / "out")
    cache = hub_cache.repository_folder("org/b")
    assert not [p for p in cache.rglob("*") if sha256 in p.name]
    hub.heal()
    streammerge.average(IDS, tmp_path / "out")
    assert weights_of(tmp_path / "out") == pair.wanted


@BOTH
def test_a_wrong_file_in_the_cache_is_found_whoever_put_it_there(
    tmp_path: Path,
    hub: Hub,
    pair: Pair,
    mode: DownloadMode,
    capsys: pytest.CaptureFixture[str],
) -> None:
    huggingface_hub.hf_hub_download("org/b", WEIGHTS)
    flip(cached("org/b", WEIGHTS))
    done = in_process(capsys, "average", *IDS, "-o", tmp_path / "out", "--download", mode)
    assert done.code == 0, done.err
    assert "org/b/model.safetensors in the cache" in done.out
    assert "downloaded again" in done.out
    assert weights_of(tmp_path / "out") == pair.wanted


def test_a_wrong_config_in_the_cache_is_found_too(tmp_path: Path, hub: Hub, pair: Pair) -> None:
    huggingface_hub.hf_hub_download("org/a", "config.json")
    flip(cached("org/a", "config.json"), 20)
    streammerge.average(IDS, tmp_path / "out")
    found = (tmp_path / "out/config.json").read_bytes()
    assert found == (pair.folders[0] / "config.json").read_bytes()


def test_a_file_is_checked_once_and_again_when_it_changed(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    check = hub_cache.check

    def counted(path: Path, digest: str, stop: object = None) -> bool:
        read.append(path.name)
        return check(path, digest)

    monkeypatch.setattr(hub_cache, "check", counted)
    streammerge.average(IDS, tmp_path / "one")
    assert len([name for name in read if name.endswith(".safetensors")]) == 4
    read.clear()
    streammerge.average(IDS, tmp_path / "two")
    streammerge.average(IDS, tmp_path / "three", download="stream")
    assert read == []
    path = cached("org/b", WEIGHTS)
    path.resolve().write_bytes(path.read_bytes())
    result = streammerge.average(IDS, tmp_path / "four")
    assert read == [WEIGHTS]
    assert not any("deleted" in note for note in result.notes)


def test_a_cache_that_cannot_be_noted_in_is_checked_every_time(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, text: str) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(hub_cache, "_replace", read_only)
    for out in ("one", "two"):
        streammerge.average(IDS, tmp_path / out)
        assert weights_of(tmp_path / out) == pair.wanted


@BOTH
def test_what_is_in_the_cache_merges_without_network(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = streammerge.average(IDS, tmp_path / "one")
    hub.log.clear()
    offline(monkeypatch)
    again = streammerge.average(IDS, tmp_path / "two", download=mode)
    assert again.fingerprint == online.fingerprint
    assert weights_of(tmp_path / "two") == pair.wanted
    assert streammerge.verify(tmp_path / "two", recompute="all").ok
    assert len(hub.log) == 0


def test_offline_takes_a_branch_for_what_it_meant_and_a_commit_for_itself(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hub.head("org/b")
    hub.tag("org/b", "v1")
    streammerge.average(["org/a", "org/b@v1"], tmp_path / "one")
    hub.commit("org/b", {"config.json": "{}"})
    offline(monkeypatch)
    for reference in ("org/b@v1", f"org/b@{before}"):
        out = tmp_path / reference.replace("/", "-")
        streammerge.average(["org/a", reference], out)
        assert weights_of(out) == pair.wanted
    refusal(
        lambda: streammerge.average(["org/a", "org/b"], tmp_path / "no"), "org/b@main", "OFFLINE"
    )


def test_offline_refuses_what_the_cache_lacks(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.hf_hub_download("org/a", "config.json")
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match="no safetensors weights") as caught:
        streammerge.average(IDS, tmp_path / "out", download="stream")
    assert "in the cache" in " ".join(caught.value.__notes__)
    message = refusal(lambda: streammerge.average(["org/x", "org/b"], tmp_path / "out"))
    assert "HF_HUB_OFFLINE is set" in message
    assert "hf download org/x" in message
    assert len(hub.log.find("info")) == 0


@BOTH
def test_a_hub_that_cannot_be_reached_is_no_obstacle_to_a_cached_model(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "pause", lambda seconds, stop: None)
    streammerge.average(IDS, tmp_path / "one")
    hub.fault(Status(503), times=None)
    result = streammerge.average(IDS, tmp_path / "two", download=mode)
    assert weights_of(tmp_path / "two") == pair.wanted
    assert sum("cannot be reached" in note for note in result.notes) == 2
    hub.stop()
    result = streammerge.average(IDS, tmp_path / "three", download=mode)
    assert weights_of(tmp_path / "three") == pair.wanted


def test_a_full_disk_is_found_before_the_download(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def room(nbytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, nbytes))

    needed = pair.weights + sum(map(len, pair.wanted.values()))
    room(needed + 15_900_000)
    with pytest.raises(DiskSpaceError, match="in the cache and the output"):
        prepare_average(IDS, tmp_path / "out")
    prepare_average(IDS, tmp_path / "out", download="stream")
    room(needed + 20_000_000)
    api.execute(prepare_average(IDS, tmp_path / "out"))
    room(needed - pair.weights + 16_100_000)  # nothing is missing any more
    prepare_average(IDS, tmp_path / "more")


def test_the_same_repository_twice_needs_room_once(
    tmp_path: Path, hub: Hub, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len((pair.folders[1] / WEIGHTS).read_bytes())
    usage = Usage(10**12, 0, 2 * size + 16_100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    streammerge.average(["org/b", "org/b@main"], tmp_path / "out")
    assert hub.log.downloaded(file=WEIGHTS) < 1.1 * size


def test_downloads_are_counted(tmp_path: Path, hub: Hub, pair: Pair) -> None:
    counted: list[tuple[int, int]] = []
    streammerge.average(IDS, tmp_path / "out", download_progress=lambda *n: counted.append(n))
    assert sum(n for n, _ in counted) == pair.weights
    assert {total for _, total in counted} == {pair.weights}


def test_a_failed_download_calls_the_others_off_and_leaves_no_pieces(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    prepared = prepare_average(IDS, tmp_path / "out")
    hub.fault(Status(403), kind="download", file="*00002*", times=None)
    refusal(lambda: api.execute(prepared), "00002")
    cache = hub_cache.repository_folder("org/a").parent
    assert not list(cache.rglob("*.incomplete"))


def test_large_files_by_the_xet_path_are_merged_and_checked(
    tmp_path: Path, xet_hub: Hub, local_pair: Pair
) -> None:
    for repo, folder in zip(IDS, local_pair.folders, strict=True):
        xet_hub.create(repo, folder)
    streammerge.average(IDS, tmp_path / "out")
    assert weights_of(tmp_path / "out") == local_pair.wanted
    flip(cached("org/b", WEIGHTS))
    result = streammerge.average(IDS, tmp_path / "again")
    assert weights_of(tmp_path / "again") == local_pair.wanted
    assert any("deleted" in note for note in result.notes)
