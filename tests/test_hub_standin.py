"""The stand-in for the Hub, proved against the real client: repositories, files, rights."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    create_repo,
    get_safetensors_metadata,
    hf_hub_download,
    snapshot_download,
    upload_file,
    whoami,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RevisionNotFoundError,
)

from tests.support.checkpoints import random_tensors, write_checkpoint
from tests.support.hub import READ, STRANGER, WRITE, Hub, hub_environment
from tests.support.hub.client import running_hub

LARGE = os.urandom(300_000)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refused(action: Callable[[], Any]) -> int:
    """The status with which the Hub refuses."""
    with pytest.raises(HfHubHTTPError) as error:
        action()
    return error.value.response.status_code


def test_it_starts_and_stops_fast(tmp_path: Path) -> None:
    begin = time.monotonic()
    with running_hub(tmp_path):
        assert whoami()["name"] == "me"
    assert time.monotonic() - begin < 0.5


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
    assert refused(
        lambda: HfApi().create_commit("me/m", operations, commit_message="x", parent_commit=stale)
    ) == 412
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
    assert refused(
        lambda: upload_file(path_or_fileobj=b"x", path_in_repo="v.txt", repo_id="me/m")
    ) == 403
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


def test_a_subprocess_finds_it(hub: Hub, tmp_path: Path) -> None:
    hub.create("me/m", {"config.json": "{}"}, private=True)
    code = "import huggingface_hub as h; print(h.hf_hub_download('me/m', 'config.json'))"
    run = [sys.executable, "-W", "error", "-c", code]
    for token, status in (READ, 0), (None, 1):
        environment = hub_environment(hub, tmp_path / str(status), token)
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert str(tmp_path) in done.stdout or "RepositoryNotFoundError" in done.stderr
