"""The stand-in for the Hub: private, gated and missing, with every kind of token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import (
    HfApi,
    create_repo,
    hf_hub_download,
    snapshot_download,
    upload_file,
    whoami,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.hub import READ, STRANGER, WRITE, Hub

TOKENS = {"write": WRITE, "read": READ, "stranger": STRANGER, "nobody": None}
EACH_TOKEN = pytest.mark.parametrize("who", TOKENS)


@pytest.fixture
def caller(who: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Be that user; `me` has access to `org/opened`, but owns neither it nor `org/gated`."""
    hub.create("org/public", {"config.json": "{}"})
    hub.create("org/gated", {"config.json": "{}"}, gated="manual")
    hub.create("org/opened", {"config.json": "{}"}, gated="auto", readers=["me"])
    hub.create("org/private", {"config.json": "{}"}, private=True)
    hub.create("org/shared", {"config.json": "{}"}, private=True, readers=["me"])
    hub.create("me/private", {"config.json": "{}"}, private=True)
    if token := TOKENS[who]:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    return who


def outcome(action: Callable[[], Any]) -> tuple[str, int]:
    """The class of the client's exception and the status; ("", 200) for success."""
    try:
        action()
    except HfHubHTTPError as error:
        return type(error).__name__, error.response.status_code
    return "", 200


FINE, GATED_403, GATED_401 = ("", 200), ("GatedRepoError", 403), ("GatedRepoError", 401)
MISSING_404, MISSING_401 = ("RepositoryNotFoundError", 404), ("RepositoryNotFoundError", 401)
CONTENT = {
    "org/public": {"write": FINE, "read": FINE, "stranger": FINE, "nobody": FINE},
    "org/gated": dict.fromkeys(TOKENS, GATED_403) | {"nobody": GATED_401},
    "org/opened": {"write": FINE, "read": FINE, "stranger": GATED_403, "nobody": GATED_401},
    "org/private": dict.fromkeys(TOKENS, MISSING_404) | {"nobody": MISSING_401},
    "org/shared": {"write": FINE, "read": FINE, "stranger": MISSING_404, "nobody": MISSING_401},
    "me/private": {"write": FINE, "read": FINE, "stranger": MISSING_404, "nobody": MISSING_401},
    "org/missing": dict.fromkeys(TOKENS, MISSING_404) | {"nobody": MISSING_401},
}


@EACH_TOKEN
@pytest.mark.parametrize("repo", CONTENT)
def test_who_reads_what(caller: str, repo: str) -> None:
    expected = CONTENT[repo][caller]
    assert outcome(lambda: hf_hub_download(repo, "config.json")) == expected
    assert outcome(lambda: HfApi().auth_check(repo)) == expected
    # The names of the files of a gated repository are public.
    public = FINE if expected[0] == "GatedRepoError" else expected
    assert outcome(lambda: HfApi().model_info(repo)) == public
    assert outcome(lambda: list(HfApi().list_repo_tree(repo))) == public
    assert HfApi().repo_exists(repo) == (public == FINE)


@EACH_TOKEN
def test_who_writes_what(caller: str, hub: Hub) -> None:
    api = HfApi()
    own = {
        "write": FINE,
        "read": ("HfHubHTTPError", 403),
        "stranger": MISSING_404,
        "nobody": MISSING_401,
    }
    denied = ("HfHubHTTPError", 401 if caller == "nobody" else 403)
    for repo, expected in ("me/private", own[caller]), ("org/public", denied):
        heads = hub.head(repo)
        assert outcome(lambda repo=repo: api.auth_check(repo, write=True)) == expected
        upload = {"path_or_fileobj": b"{}\n", "path_in_repo": "config.json", "repo_id": repo}
        assert outcome(lambda upload=upload: upload_file(**upload)) == expected
        upload |= {"path_or_fileobj": b"weights", "path_in_repo": "model.safetensors"}
        assert outcome(lambda upload=upload: upload_file(**upload)) == expected
        assert (hub.head(repo) != heads) == (expected == FINE)
    made = {"write": FINE, "read": denied, "stranger": denied, "nobody": denied}
    assert outcome(lambda: create_repo("me/new")) == made[caller]
    assert outcome(lambda: create_repo("my-org/new")) == made[caller]


@EACH_TOKEN
def test_who_one_is(caller: str) -> None:
    if caller == "nobody":
        with pytest.raises(LocalTokenNotFoundError):
            whoami()
        return
    found = whoami()
    assert found["name"] == ("stranger" if caller == "stranger" else "me")
    role = found["auth"]["accessToken"]["role"]
    assert role == ("read" if caller == "read" else "write")


def test_a_wrong_token_is_told_apart_from_a_missing_repository(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("org/public", {"config.json": "{}"})
    monkeypatch.setenv("HF_TOKEN", "hf_nonsense")
    assert outcome(whoami) == ("HfHubHTTPError", 401)
    assert outcome(lambda: HfApi().model_info("org/public")) == ("HfHubHTTPError", 401)


def test_what_is_missing_inside_a_repository(hub: Hub) -> None:
    hub.create("org/m", {"config.json": "{}"})
    with pytest.raises(EntryNotFoundError) as entry:
        hf_hub_download("org/m", "none.json")
    assert entry.value.response.headers["X-Repo-Commit"] == hub.head("org/m")
    for action in (
        lambda: hf_hub_download("org/m", "config.json", revision="none"),
        lambda: snapshot_download("org/m", revision="none"),
        lambda: HfApi().model_info("org/m", revision="0" * 40),
    ):
        with pytest.raises(RevisionNotFoundError):
            action()
    assert issubclass(GatedRepoError, RepositoryNotFoundError)
