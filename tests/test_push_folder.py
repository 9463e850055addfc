"""A folder that is pushed must be what streammerge wrote; what tells so is not read twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import streammerge
from streammerge.errors import OutputError, StreammergeError
from tests.support.hub import Hub
from tests.support.targets import REPO, Merged, digested, merge_once


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda f: next(f.glob("*.safetensors")).unlink(), "is missing"),
    "a shard is cut": (
        lambda f: os.truncate(next(f.glob("*.safetensors")), 40_000),
        "bytes",
    ),
    "a shard was changed": (
        lambda f: _flip(next(f.glob("*.safetensors"))),
        "was changed: its sha256",
    ),
    "the index is missing": (lambda f: next(f.glob("*.index.json")).unlink(), "index"),
    "the config was changed": (lambda f: (f / "config.json").write_text("{}"), "config.json"),
    "other weights lie there": (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "no part"),
    "the card is missing": (lambda f: (f / "README.md").unlink(), "README.md: is missing"),
    "no streammerge.json": (lambda f: (f / "streammerge.json").unlink(), "there is no"),
    "a merge that did not end": (lambda f: (f / ".streammerge-partial").mkdir(), "did not end"),
}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def copy(merged: Merged, folder: Path) -> Path:
    """A copy with the times of the original, as `cp -p` makes it."""
    return Path(shutil.copytree(merged.folder, folder / "copy"))


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_a_finished_output_is_not_pushed(
    hub: Hub, merged: Merged, tmp_path: Path, case: str
) -> None:
    folder = copy(merged, tmp_path)
    damage, said = BROKEN[case]
    damage(folder)
    with pytest.raises(StreammergeError, match=said):
        streammerge.push(folder, REPO)
    assert not hub.repositories


def test_a_change_that_kept_size_and_time_is_found_with_verify(
    hub: Hub, merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(merged, tmp_path)
    shard = next(folder.glob("*.safetensors"))
    times = shard.stat()
    _flip(shard)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(OutputError, match="was changed"):
        streammerge.push(folder, REPO, verify=True)
    assert not hub.repositories


def test_files_that_were_copied_are_read_and_compared(
    hub: Hub, merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(merged, tmp_path)
    newer = sorted(folder.glob("*.safetensors"))[0]
    os.utime(newer)
    files = digested(monkeypatch)
    streammerge.push(folder, REPO)
    assert [file for file in files if file.endswith(".safetensors")] == [newer.name]


def test_an_edited_card_is_pushed_as_it_is(hub: Hub, merged: Merged, tmp_path: Path) -> None:
    folder = copy(merged, tmp_path)
    text = (folder / "README.md").read_text() + "\nMy favourite merge.\n"
    (folder / "README.md").write_text(text)
    streammerge.push(folder, REPO)
    assert hub.read(REPO, "README.md").decode() == text
