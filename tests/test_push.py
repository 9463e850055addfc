"""What gets to the Hub: all of the model in one commit, and nothing of an older one beside it."""

from __future__ import annotations

from typing import Any

import pytest

import streammerge
from streammerge.errors import HubError
from tests.support.hub import Hub, writing
from tests.support.merging import snapshot
from tests.support.targets import REPO, SHARDS, Merged, digested, files_of, files_on, merge_once


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


def to_hub(merged: Merged, out: str = f"hf://{REPO}", **options: Any) -> streammerge.Pushed:
    done = streammerge.average(merged.models, out, **SHARDS, **options)
    assert done.pushed is not None
    return done.pushed


def test_a_finished_folder_is_pushed_in_one_commit(hub: Hub, merged: Merged) -> None:
    before = snapshot(merged.folder)
    pushed = streammerge.push(merged.folder, REPO)
    assert files_on(hub) == files_of(merged.folder)
    assert hub.log.commits() == 1
    assert pushed == streammerge.Pushed(
        REPO, "main", hub.head(REPO), f"{hub.url}/{REPO}/commit/{hub.head(REPO)}", True
    )
    assert snapshot(merged.folder) == before


def test_a_second_push_sends_nothing_and_commits_nothing(hub: Hub, merged: Merged) -> None:
    first = streammerge.push(merged.folder, REPO)
    hub.log.clear()
    again = streammerge.push(merged.folder, REPO)
    assert (again.new, again.commit) == (False, first.commit)
    assert hub.log.uploaded() == 0
    assert hub.log.commits() == 0


def test_the_digests_of_the_merge_serve_for_everything(
    hub: Hub, merged: Merged, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import lfs
    from huggingface_hub.utils import sha

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("a file was read to be hashed")

    monkeypatch.setattr(lfs, "sha_fileobj", refuse)
    monkeypatch.setattr(sha, "sha_fileobj", refuse)
    files = digested(monkeypatch)
    streammerge.push(merged.folder, REPO)
    assert not [file for file in files if file.endswith(".safetensors")]
    to_hub(merged, "hf://me/second")
    oids = {blob.sha256 for blob in hub.files(REPO).values() if blob.sha256}
    assert oids == {shard.sha256 for shard in merged.shards}
    assert oids == {blob.sha256 for blob in hub.files("me/second").values() if blob.sha256}


def test_large_files_go_in_parts(hub: Hub, merged: Merged) -> None:
    hub.part_size = 10_000
    streammerge.push(merged.folder, REPO)
    assert files_on(hub) == files_of(merged.folder)
    assert len(hub.log.find("upload")) > 3 * len(merged.shards)


def test_by_xet_too(xet_hub: Hub, merged: Merged) -> None:
    streammerge.push(merged.folder, REPO)
    assert files_on(xet_hub) == files_of(merged.folder)
    assert to_hub(merged, "hf://me/second").new
    assert files_on(xet_hub, "me/second").keys() == files_of(merged.folder).keys()
    assert xet_hub.log.find("lfs_batch") == []
    assert xet_hub.log.commits() == 2


def test_small_weights_that_the_repository_keeps_in_git(
    hub: Hub, merged: Merged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "goes_large", lambda *_: False)
    streammerge.push(merged.folder, REPO)
    assert files_on(hub) == files_of(merged.folder)
    to_hub(merged, "hf://me/second")
    assert files_on(hub, "me/second").keys() == files_of(merged.folder).keys()
    assert hub.log.uploaded() == 0
    hub.log.clear()
    assert not streammerge.push(merged.folder, REPO).new
    assert hub.log.commits() == 0


@pytest.mark.parametrize("ignored", ["*.safetensors", "tokenizer*", "*00002*"])
def test_a_gitignore_does_not_leave_out_files_in_silence(
    hub: Hub, merged: Merged, ignored: str
) -> None:
    hub.create(REPO, {".gitignore": f"{ignored}\n", "notes.txt": "n"})
    for push in (
        lambda: streammerge.push(merged.folder, REPO),
        lambda: to_hub(merged),
    ):
        with pytest.raises(HubError, match=r"\.gitignore of me/merged leaves out"):
            push()
    assert files_on(hub) == {".gitignore": f"{ignored}\n".encode(), "notes.txt": b"n"}
    assert hub.log.commits() == 0


def test_onto_a_branch_that_is_made_and_one_that_exists(hub: Hub, merged: Merged) -> None:
    hub.create(REPO, {"config.json": b"{}"})
    main = hub.head(REPO)
    pushed = streammerge.push(merged.folder, REPO, branch="v2")
    assert pushed.branch == "v2"
    assert hub.head(REPO) == main
    assert files_on(hub, REPO, "v2") == files_of(merged.folder)
    assert to_hub(merged, f"hf://{REPO}@v2").branch == "v2"
    assert hub.head(REPO) == main


def test_a_pull_request_leaves_the_branch_alone(hub: Hub, merged: Merged) -> None:
    hub.create(REPO, {"model.safetensors": b"old", "notes.txt": b"n"})
    main = hub.head(REPO)
    pushed = streammerge.push(merged.folder, REPO, create_pr=True)
    assert pushed.url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.head(REPO) == main
    found = files_on(hub, REPO, "refs/pr/1")
    assert found == files_of(merged.folder) | {"notes.txt": b"n"}
    again = streammerge.push(merged.folder, REPO, create_pr=True)
    assert (again.new, again.url) == (False, pushed.url)
    assert hub.log.commits() == 1


def test_a_new_repository_is_private_if_told(hub: Hub, merged: Merged) -> None:
    streammerge.push(merged.folder, "me/open")
    streammerge.push(merged.folder, "my-org/closed", private=True)
    assert not hub.repositories["me/open"].private
    assert hub.repositories["my-org/closed"].private


def test_nothing_of_an_older_model_stays_and_all_else_does(hub: Hub, merged: Merged) -> None:
    old = (
        *("model.safetensors", "model-00001-of-00009.safetensors", "pytorch_model.bin"),
        *("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        *("consolidated.safetensors", "added_tokens.json", "merges.txt", "README.md"),
    )
    theirs = ("notes.txt", "picture.png", "LICENSE.md", "onnx/model.onnx", "q4.gguf", "eval.py")
    hub.create(REPO, {name: f"old {name}" for name in (*old, *theirs)})
    streammerge.push(merged.folder, REPO)
    kept = {name: f"old {name}".encode() for name in theirs}
    assert files_on(hub) == files_of(merged.folder) | kept
    assert hub.log.commits() == 1


def test_the_older_model_stays_in_the_history(hub: Hub, merged: Merged) -> None:
    hub.create(REPO, {"model.safetensors": b"old"})
    old = hub.head(REPO)
    streammerge.push(merged.folder, REPO)
    assert hub.read(REPO, "model.safetensors", old) == b"old"
    assert [commit.oid for commit in hub.history(REPO)][1] == old
