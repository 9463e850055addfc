"""The stand-in for the Hub, proved against the real client: commits, uploads, branches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    create_repo,
    hf_hub_download,
    upload_file,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)

from tests.support.hub import STRANGER, WRITE, Hub

LARGE = os.urandom(300_000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refused(action: Callable[[], Any]) -> int:
    """The status with which the Hub refuses."""
    with pytest.raises(HfHubHTTPError) as error:
        action()
    return error.value.response.status_code


def test_create_repo(hub: Hub) -> None:
    url = create_repo("me/new", private=True)
    assert (url.repo_id, url.repo_type) == ("me/new", "model")
    assert refused(lambda: create_repo("me/new")) == 409
    create_repo("me/new", exist_ok=True)
    info = HfApi().model_info("me/new")
    assert info.private
    assert [s.rfilename for s in info.siblings or []] == [".gitattributes"]
    assert refused(lambda: create_repo("someone-else/new")) == 403
    HfApi().update_repo_settings("me/new", private=False)
    assert not HfApi().model_info("me/new").private
    HfApi().delete_repo("me/new")
    assert not HfApi().repo_exists("me/new")


def test_one_commit_of_many_files_and_a_deletion(hub: Hub, tmp_path: Path) -> None:
    hub.create("me/m", {"old.bin": b"x", "a/b/c.txt": "c", "a/d.txt": "d", "keep.txt": "k"})
    (tmp_path / "w").write_bytes(LARGE)
    before = hub.head("me/m")
    made = HfApi().create_commit(
        "me/m",
        [
            CommitOperationAdd("model.safetensors", str(tmp_path / "w")),
            CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n"),
            CommitOperationDelete("old.bin"),
            CommitOperationDelete("a/", is_folder=True),
        ],
        commit_message="all at once",
        commit_description="why",
        parent_commit=before,
    )
    assert made.oid == hub.head("me/m")
    assert hub.files("me/m").keys() == {"model.safetensors", "README.md", "keep.txt"}
    assert hub.files("me/m", before).keys() == {"old.bin", "a/b/c.txt", "a/d.txt", "keep.txt"}
    newest = HfApi().list_repo_commits("me/m")[0]
    assert (newest.commit_id, newest.title, newest.message) == (made.oid, "all at once", "why")
    assert newest.authors == ["me"]
    gone = [CommitOperationDelete("nothing.txt")]
    with pytest.raises(EntryNotFoundError):
        HfApi().create_commit("me/m", gone, commit_message="x")
    assert hub.log.commits() == 1


def test_a_commit_on_another_parent_gets_412(hub: Hub) -> None:
    hub.create("me/m")
    stale = hub.head("me/m")
    newer = hub.commit("me/m", {"config.json": "{}"})
    operations = [CommitOperationAdd("x.txt", b"x")]
    assert (
        refused(
            lambda: HfApi().create_commit(
                "me/m", operations, commit_message="x", parent_commit=stale
            )
        )
        == 412
    )
    assert hub.head("me/m") == newer


@pytest.mark.parametrize("part_size", [10**9, 300_000, 100_000, 99_999])
def test_preuploaded_files_are_committed_and_never_sent_twice(
    hub: Hub, tmp_path: Path, part_size: int
) -> None:
    hub.part_size = part_size
    hub.create("me/m")
    (tmp_path / "w").write_bytes(LARGE)
    shard = CommitOperationAdd("model.safetensors", str(tmp_path / "w"))
    HfApi().preupload_lfs_files("me/m", [shard])
    assert hub.files("me/m") == {}
    assert hub.log.uploaded() == len(LARGE)
    HfApi().create_commit("me/m", [shard], commit_message="x")
    again = CommitOperationAdd("copy.safetensors", str(tmp_path / "w"))
    HfApi().create_commit("me/m", [again], commit_message="y")
    assert hub.log.uploaded() == len(LARGE)
    assert hub.log.uploaded_twice() == []
    assert len(hub.log.find("upload")) == -(-len(LARGE) // part_size)
    assert hub.read("me/m", "model.safetensors") == hub.read("me/m", "copy.safetensors") == LARGE
    assert list((hub.objects.folder).iterdir()) == [hub.objects.path(sha256(LARGE))]


def test_a_commit_of_what_was_not_uploaded_is_refused(hub: Hub) -> None:
    hub.create("me/m")
    shard = CommitOperationAdd("model.safetensors", LARGE)
    shard._upload_mode, shard._is_uploaded = "lfs", True
    assert refused(lambda: HfApi().create_commit("me/m", [shard], commit_message="x")) == 400


def test_branches_tags_and_pull_requests(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("me/m", {"v.txt": "1"})
    api, one = HfApi(), hub.head("me/m")
    api.create_branch("me/m", branch="side/b", revision=one)
    assert refused(lambda: api.create_branch("me/m", branch="side/b")) == 409
    api.create_tag("me/m", tag="v1")
    upload_file(path_or_fileobj=b"2", path_in_repo="v.txt", repo_id="me/m", revision="side/b")
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    assert (
        refused(lambda: upload_file(path_or_fileobj=b"x", path_in_repo="v.txt", repo_id="me/m"))
        == 403
    )
    pull = upload_file(path_or_fileobj=LARGE, path_in_repo="w.bin", repo_id="me/m", create_pr=True)
    assert (pull.pr_revision, pull.pr_num) == ("refs/pr/1", 1)
    assert hub.read("me/m", "w.bin", "refs/pr/1") == LARGE
    found = api.list_repo_refs("me/m", include_pull_requests=True)
    heads = {"main": one, "side/b": hub.head("me/m", "side/b")}
    assert {b.name: b.target_commit for b in found.branches} == heads
    assert [(t.name, t.target_commit) for t in found.tags] == [("v1", one)]
    assert [p.ref for p in found.pull_requests or []] == ["refs/pr/1"]
    for revision, text in {"main": "1", "v1": "1", one: "1", "side/b": "2"}.items():
        assert Path(hf_hub_download("me/m", "v.txt", revision=revision)).read_text() == text
    assert Path(hf_hub_download("me/m", "w.bin", revision="refs/pr/1")).read_bytes() == LARGE
    monkeypatch.setenv("HF_TOKEN", WRITE)
    with pytest.raises(RevisionNotFoundError):
        upload_file(path_or_fileobj=b"", path_in_repo="v", repo_id="me/m", revision="no")
    api.delete_branch("me/m", branch="side/b")
    api.delete_tag("me/m", tag="v1")
    assert not api.revision_exists("me/m", "side/b")
    assert not api.revision_exists("me/m", "v1")


def test_the_card_is_checked_and_shown(hub: Hub) -> None:
    card = "---\nbase_model: [org/a, org/b]\nbase_model_relation: merge\ntags: [merge]\n---\n# x\n"
    hub.create("me/m")
    ModelCard(card).push_to_hub("me/m")
    info = HfApi().model_info("me/m")
    assert info.card_data is not None
    assert info.card_data.base_model == ["org/a", "org/b"]
    assert {"merge", "base_model:merge:org/a"} <= set(info.tags or [])
    with pytest.raises(ValueError, match="metadata"):
        upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="me/m")
