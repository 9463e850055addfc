"""Whatever goes wrong on the way to the Hub: all of the model is there in one commit, or none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import streammerge
from streammerge.errors import HubError
from streammerge.storage import retrying
from tests.support.hub import CutUpload, Do, Drop, Hub, LoseAnswer, RefuseObject, Status
from tests.support.targets import REPO, SHARDS, Merged, View, files_of, files_on, merge_once

WAYS = ("hub", "folder")
NOT_BYTES_OF_THE_MERGE = {"streammerge.json", "README.md"}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]) -> None:
    monkeypatch.setattr(retrying, "pause", lambda seconds, stop: None)


def go(merged: Merged, way: str, folder: Path, **options: Any) -> streammerge.Pushed:
    """Merge onto the Hub, or into a folder that is pushed; a second call goes on."""
    if way == "hub":
        done = streammerge.average(merged.models, f"hf://{REPO}", **SHARDS, **options)
    else:
        done = streammerge.average(
            merged.models, folder / "out", push_to_hub=REPO, overwrite=True, **SHARDS, **options
        )
    assert done.pushed is not None
    return done.pushed


def one_way_each(faults: Iterable[str]) -> list[Any]:
    """Every fault with one of the ways in turn; the other way is slow to run as well."""
    return [
        pytest.param(fault, way, marks=[] if (i + j) % 2 == 0 else [pytest.mark.slow])
        for i, fault in enumerate(faults)
        for j, way in enumerate(WAYS)
    ]


def weights_and_all(view: View) -> View:
    """A view without the files that name the command, which is another each time."""
    return {name: data for name, data in view.items() if name not in NOT_BYTES_OF_THE_MERGE}


def assert_pushed(hub: Hub, merged: Merged, commits: int = 1) -> None:
    """The model is on the Hub, whole, in one commit on what was there before."""
    assert weights_and_all(files_on(hub)) == weights_and_all(files_of(merged.folder))
    assert set(files_on(hub)) == set(files_of(merged.folder))
    assert hub.log.commits(REPO) == commits
    assert hub.log.uploaded_twice() == []


PASSING: dict[str, tuple[Any, dict[str, Any]]] = {
    "an upload fails": (lambda: Status(500), {"kind": "upload"}),
    "an upload fails three times": (lambda: Status(503), {"kind": "upload", "times": 3}),
    "an upload is cut": (lambda: CutUpload(20_000), {"kind": "upload"}),
    "an upload gets no answer": (lambda: Drop(), {"kind": "upload"}),
    "the store is busy": (lambda: Status(429), {"kind": "upload", "times": 2}),
    "an upload is not verified": (lambda: Status(500), {"kind": "lfs_verify"}),
    "the batch call fails": (lambda: Status(502), {"kind": "lfs_batch"}),
    "the preupload call fails": (lambda: Status(500), {"kind": "preupload"}),
    "the commit fails": (lambda: Status(500), {"kind": "commit"}),
    "the commit fails twice": (lambda: Status(503), {"kind": "commit", "times": 2}),
    "too many requests at the commit": (lambda: Status(429), {"kind": "commit"}),
    "the commit never arrives": (lambda: Drop(), {"kind": "commit"}),
    "the commit's answer is lost": (lambda: LoseAnswer(), {"kind": "commit"}),
    "the commit is in conflict with nothing": (lambda: Status(412), {"kind": "commit"}),
    "looking before the commit fails": (lambda: Status(500), {"kind": "tree", "skip": 1}),
    "the card is not looked at": (lambda: Status(500), {"kind": "validate_yaml"}),
}


@pytest.mark.parametrize(("fault", "way"), one_way_each(PASSING))
def test_what_passes_is_waited_for(
    hub: Hub, merged: Merged, way: str, tmp_path: Path, fault: str
) -> None:
    effect, requests = PASSING[fault]
    told = hub.fault(effect(), **requests)
    pushed = go(merged, way, tmp_path)
    assert told.hits == requests.get("times", 1), "the fault never happened"
    assert pushed.new
    assert pushed.commit == hub.head(REPO)
    assert_pushed(hub, merged)


LASTING: dict[str, tuple[Any, dict[str, Any], str]] = {
    "uploads fail": (lambda: Status(500), {"kind": "upload"}, "upload model.*Hub failed"),
    "the second upload fails": (lambda: Status(500), {"kind": "upload", "skip": 1}, "upload model"),
    "uploads are cut": (lambda: CutUpload(20_000), {"kind": "upload"}, "cannot be reached"),
    "the quota is used up": (lambda: RefuseObject(), {"kind": "lfs_batch"}, "quota"),
    "private storage is full": (
        lambda: Status(403, "Private repository storage limit reached, please upgrade your plan"),
        {"kind": "lfs_batch"},
        r"takes no more: Private repository storage limit.*Free or buy storage",
    ),
    "rights are taken away": (lambda: Status(403), {"kind": "preupload"}, "may not"),
    "the token is revoked": (
        lambda: Status(401, "Invalid credentials in Authorization header"),
        {"kind": "preupload"},
        "token is not valid",
    ),
    "the commit fails": (lambda: Status(500), {"kind": "commit"}, "main is as it was"),
    "the commit never arrives": (lambda: Drop(), {"kind": "commit"}, "main is as it was"),
    "the commit is refused": (lambda: Status(400, "no"), {"kind": "commit"}, "main is as it was"),
    "a conflict that never ends": (lambda: Status(412), {"kind": "commit"}, "main is as it was"),
    "the network is gone": (lambda: Drop(), {"kind": "*", "skip": 12}, "cannot be reached"),
    "the Hub is gone": (lambda: Status(503), {"kind": "*", "skip": 15}, "Hub failed"),
}


@pytest.mark.parametrize(("fault", "way"), one_way_each(LASTING))
def test_what_lasts_is_one_error_and_main_is_as_it_was(
    hub: Hub, merged: Merged, way: str, tmp_path: Path, fault: str
) -> None:
    hub.create(REPO, {"model.safetensors": b"old", "config.json": b"{}", "notes.txt": b"mine"})
    head, before = hub.head(REPO), files_on(hub)
    effect, requests, said = LASTING[fault]
    told = hub.fault(effect(), times=None, **requests)
    with pytest.raises(HubError) as failure:
        go(merged, way, tmp_path)
    assert told.hits, "the fault never happened"
    assert re.search(said, str(failure.value), re.S), str(failure.value)
    assert failure.value.remedy
    assert (hub.head(REPO), files_on(hub)) == (head, before)

    hub.heal()
    sent = {entry.file for entry in hub.log.find("upload") if entry.ok}
    hub.log.clear()
    go(merged, way, tmp_path)
    assert not sent & {entry.file for entry in hub.log.find("upload")}, "sent once more"
    assert hub.read(REPO, "notes.txt") == b"mine"
    hub.commit(REPO, {"notes.txt": None})
    assert_pushed(hub, merged)


def test_a_lost_answer_is_found_out_later_if_the_network_stays_away(
    hub: Hub, merged: Merged, way: str, tmp_path: Path
) -> None:
    hub.fault(LoseAnswer(), kind="commit")
    hub.fault(Do(lambda: hub.fault(Drop(), times=None)), kind="commit")
    with pytest.raises(HubError, match="find out whether the commit was made"):
        go(merged, way, tmp_path)
    hub.heal()
    pushed = go(merged, way, tmp_path)
    if way == "hub":
        assert not pushed.new, "it was there"
        assert_pushed(hub, merged)
    else:  # another OUT was written, and its card and manifest are the same
        assert_pushed(hub, merged, commits=hub.log.commits(REPO))


def test_a_change_that_has_nothing_to_do_with_it_is_kept(
    hub: Hub, merged: Merged, way: str, tmp_path: Path
) -> None:
    hub.create(REPO)
    hub.fault(Do(lambda: hub.commit(REPO, {"notes.txt": b"theirs"})), kind="commit")
    go(merged, way, tmp_path)
    assert [entry.status for entry in hub.log.find("commit")] == [412, 200]
    assert hub.read(REPO, "notes.txt") == b"theirs"
    assert [commit.title for commit in hub.history(REPO)][1] == "a change"
    hub.commit(REPO, {"notes.txt": None})
    assert_pushed(hub, merged)


@pytest.mark.parametrize("when", ["commit", "upload"])
@pytest.mark.parametrize(
    "theirs", [{"config.json": b"{1}"}, {"model.safetensors": b"another"}, {"README.md": b"x"}]
)
def test_a_change_of_the_model_by_somebody_else_is_not_overwritten_unseen(
    hub: Hub, merged: Merged, way: str, tmp_path: Path, when: str, theirs: dict[str, bytes]
) -> None:
    hub.create(REPO, {"config.json": b"{}", "README.md": b"old"})
    hub.fault(Do(lambda: hub.commit(REPO, theirs)), kind=when)
    with pytest.raises(HubError, match=f"(?s)by somebody else.*{next(iter(theirs))}") as failure:
        go(merged, way, tmp_path)
    assert "try again" in failure.value.remedy
    assert hub.log.commits(REPO) == 0
    assert files_on(hub) == {"config.json": b"{}", "README.md": b"old", **theirs}
    go(merged, way, tmp_path)
    assert_pushed(hub, merged)


def test_objects_that_the_hub_has_lost_are_sent_again(
    hub: Hub, merged: Merged, tmp_path: Path
) -> None:
    hub.fault(Status(500), kind="commit", times=None)
    with pytest.raises(HubError):
        go(merged, "hub", tmp_path)
    hub.heal()
    hub.repositories[REPO].objects.clear()
    hub.log.clear()
    go(merged, "hub", tmp_path)
    assert_pushed(hub, merged)
    assert len(hub.log.find("upload")) == len(merged.shards)


def test_a_pull_request_is_opened_once_although_its_answer_is_lost(
    hub: Hub, merged: Merged, tmp_path: Path
) -> None:
    hub.create(REPO, {"config.json": b"{}"})
    head = hub.head(REPO)
    hub.fault(LoseAnswer(), kind="commit")
    pushed = go(merged, "hub", tmp_path, create_pr=True)
    assert (pushed.branch, pushed.new) == ("refs/pr/1", True)
    assert pushed.url == f"{hub.url}/{REPO}/discussions/1"
    assert pushed.commit == hub.head(REPO, "refs/pr/1")
    assert files_on(hub, REPO, "refs/pr/1").keys() == files_of(merged.folder).keys()
    assert hub.log.commits(REPO) == 1
    assert hub.head(REPO) == head
