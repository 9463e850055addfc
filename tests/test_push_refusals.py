"""What is refused before anything is merged or sent: access, contradictions, inputs as outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import streammerge
from streammerge.errors import HubError, OutputError
from streammerge.storage import retrying
from tests.support.hub import READ, STRANGER, Hub
from tests.support.targets import REPO, SHARDS, Merged, files_of, files_on, merge_once


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "pause", lambda seconds, stop: None)


REFUSED_ACCESS: dict[str, tuple[Callable[[pytest.MonkeyPatch, Hub], object], str, str, str]] = {
    "nobody is logged in": (
        lambda patch, hub: patch.delenv("HF_TOKEN"),
        *(REPO, "nobody is logged in", "settings/tokens.*hf auth login"),
    ),
    "a token that may only read": (
        lambda patch, hub: patch.setenv("HF_TOKEN", READ),
        *(REPO, "token of me is read-only", "settings/tokens"),
    ),
    "a token that is not valid": (
        lambda patch, hub: patch.setenv("HF_TOKEN", "hf_gone"),
        *(REPO, "token is not valid", "expired"),
    ),
    "somebody else's namespace": (
        lambda patch, hub: patch.setenv("HF_TOKEN", STRANGER),
        *(REPO, "stranger cannot make it", "namespaces:\n  stranger"),
    ),
    "somebody else's repository": (
        lambda patch, hub: hub.create("org/theirs"),
        *("org/theirs", "token may not do that", "write access"),
    ),
    "somebody else's private repository": (
        lambda patch, hub: hub.create("org/theirs", private=True),
        *("org/theirs", "no org/theirs that you can see", "namespaces:\n  me\n  my-org"),
    ),
    "somebody else's gated repository": (
        lambda patch, hub: hub.create("org/theirs", gated="manual"),
        *("org/theirs", "repository is gated", "Ask for access"),
    ),
    "no network": (
        lambda patch, hub: hub.stop(),
        *(REPO, "cannot be reached", "Check the network"),
    ),
    "offline": (
        lambda patch, hub: patch.setattr(constants, "HF_HUB_OFFLINE", True),
        *(REPO, "HF_HUB_OFFLINE is set", "Unset it"),
    ),
}


@pytest.mark.parametrize("way", ["hub", "folder", "push"])
@pytest.mark.parametrize("case", REFUSED_ACCESS)
def test_who_may_not_write_is_told_before_the_merge(
    hub: Hub,
    merged: Merged,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    way: str,
) -> None:
    prepare, repo, said, remedy = REFUSED_ACCESS[case]
    prepare(monkeypatch, hub)
    repositories = set(hub.repositories)
    ways: dict[str, Callable[[], object]] = {
        "hub": lambda: streammerge.plan_average(merged.models, f"hf://{repo}"),
        "folder": lambda: streammerge.average(merged.models, tmp_path / "out", push_to_hub=repo),
        "push": lambda: streammerge.push(merged.folder, repo),
    }
    with pytest.raises(HubError, match=f"(?s){said}") as refusal:
        ways[way]()
    assert not hub.log.find("upload")
    assert re.search(remedy, refusal.value.remedy, re.S), refusal.value.remedy
    assert set(hub.repositories) == repositories
    assert not (tmp_path / "out").exists()


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, merged: Merged) -> None:
    hub.create(REPO)
    with pytest.raises(HubError, match="exists and is public"):
        streammerge.push(merged.folder, REPO, private=True)
    assert hub.log.uploaded() == 0


def test_a_dry_run_checks_the_access_and_makes_nothing(hub: Hub, merged: Merged) -> None:
    streammerge.plan_average(merged.models, f"hf://{REPO}")
    assert not hub.repositories
    assert not hub.log.find(method="POST")


@pytest.mark.parametrize(
    ("out", "options", "said"),
    [
        ("hf://merged", {}, "no repository"),
        ("hf://me/merged@", {}, "no repository"),
        ("hf://me/merged/sub", {}, "no repository"),
        ("hf://me/merged@v1", {"branch": "v2"}, "branch"),
        ("hf://me/merged", {"push_to_hub": REPO}, "already"),
        ("out", {"push_to_hub": "../evil"}, "no repository"),
        ("out", {"private": True}, "nothing is to be pushed"),
        ("out", {"branch": "v2"}, "nothing is to be pushed"),
        ("out", {"create_pr": True}, "nothing is to be pushed"),
    ],
)
def test_options_that_make_no_sense(
    hub: Hub, merged: Merged, tmp_path: Path, out: str, options: dict[str, Any], said: str
) -> None:
    place = out if out.startswith("hf://") else tmp_path / out
    with pytest.raises(OutputError, match=said):
        streammerge.average(merged.models, place, **options)
    assert len(hub.log) == 0
    assert not (tmp_path / "out").exists()


def test_an_input_is_not_replaced_by_the_output(hub: Hub, tmp_path: Path, merged: Merged) -> None:
    for name, model in zip("ab", merged.models, strict=True):
        hub.create(f"me/{name}", Path(model))
    names = ["me/a", "me/b"]
    with pytest.raises(OutputError, match="one of the inputs"):
        streammerge.average(names, "hf://me/a")
    with pytest.raises(OutputError, match="one of the inputs"):
        streammerge.average(names, tmp_path / "out", push_to_hub="me/b")
    streammerge.average(names, "hf://me/a@merged", **SHARDS)
    assert hub.history("me/a")[0].title == "a change"
    assert files_on(hub, "me/a", "merged").keys() >= files_of(merged.folder).keys()
