"""The Xet path of the real client, offline: hf_xet keeps its chunks in a folder of the stand-in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)

from tests.support.hub import STRANGER, Hub

LARGE = os.urandom(1_000_000)
NAME = "model.safetensors"


def test_a_file_goes_up_and_down_by_xet(xet_hub: Hub, tmp_path: Path) -> None:
    xet_hub.create("me/m")
    (tmp_path / "w").write_bytes(LARGE)
    shard = CommitOperationAdd(NAME, str(tmp_path / "w"))
    HfApi().preupload_lfs_files("me/m", [shard])
    HfApi().create_commit("me/m", [shard], commit_message="x")
    assert xet_hub.log.find("lfs_batch") == []
    assert len(xet_hub.log.find("xet_token")) >= 1
    (file,) = HfApi().get_paths_info("me/m", NAME)
    assert file.xet_hash is not None
    folder = Path(snapshot_download("me/m"))
    assert (folder / NAME).read_bytes() == LARGE
    assert xet_hub.log.downloaded(file=NAME) == 0, "the content went by Xet"
    assert xet_hub.read("me/m", NAME) == LARGE


def test_a_seeded_file_is_read_by_xet_and_by_range(xet_hub: Hub) -> None:
    xet_hub.create("org/m", {NAME: LARGE}, gated="auto", readers=["me"])
    assert Path(hf_hub_download("org/m", NAME)).read_bytes() == LARGE
    assert xet_hub.log.downloaded() == 0
    with HfFileSystem().open(f"org/m/{NAME}", cache_type="none") as file:
        file.seek(400_000)
        assert file.read(100) == LARGE[400_000:400_100]
    assert xet_hub.log.ranges(NAME) == [(400_000, 400_100)]


def test_tokens_of_xet_follow_the_rights(xet_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    xet_hub.create("me/m")
    shard = CommitOperationAdd(NAME, LARGE)
    HfApi().preupload_lfs_files("me/m", [CommitOperationAdd("a.bin", b"some bytes")])
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    shard._upload_mode = "lfs"
    with pytest.raises(Exception, match=r"403|Forbidden"):
        HfApi().preupload_lfs_files("me/m", [shard])
