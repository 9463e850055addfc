"""What a repository holds at the commit that a revision means now, or as the cache remembers it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from streammerge.errors import HubError, printable
from streammerge.storage import hub_cache
from streammerge.storage.hub_files import RemoteFile
from streammerge.storage.retrying import is_unreachable, retried

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at a commit.

    Attributes:
        commit: all of its 40 digits.
        files: by path; of the cache only those that are in it.
        place: "at <commit>", and whether the cache or the Hub was asked; for messages.
        notes: what the user should know.
    """

    commit: str
    files: Mapping[str, RemoteFile]
    place: str
    notes: list[str] = field(default_factory=list)


def open_listing(repo_id: str, revision: str, token: str | None) -> Listing:
    """Pin a revision and list what lies there.

    Where the Hub cannot be reached, or must not be (HF_HUB_OFFLINE), the cache answers instead with
    what it was told last.

    Raises:
        HubError: the Hub refuses; or it cannot be reached, and the cache does not know either.
    """
    from huggingface_hub import constants

    from streammerge.hub import explain

    revision = revision or _MAIN
    if constants.is_offline_mode():
        return _cached(repo_id, revision) or _unknown(repo_id, revision)
    try:
        return _from_hub(repo_id, revision, token)
    except HubError:
        raise
    except Exception as error:
        known = _cached(repo_id, revision) if is_unreachable(error) else None
        if known is None:
            what = "open" if revision == _MAIN else f"open revision {revision} of"
            raise explain(error, what, repo_id) from error
        known.notes.append(
            f"the Hub cannot be reached: {repo_id}@{revision} is taken as the cache has it, "
            f"commit {known.commit}"
        )
        return known


def _from_hub(repo_id: str, revision: str, token: str | None) -> Listing:
    from huggingface_hub import constants
    from huggingface_hub.hf_api import RepoFile

    from streammerge.hub import make_client

    client, timeout = make_client(token), constants.HF_HUB_DOWNLOAD_TIMEOUT
    commit = revision
    if not _COMMIT.fullmatch(revision):
        asked = retried(lambda: client.model_info(repo_id, revision=revision, timeout=timeout))
        commit = str(asked.sha)
        if not _COMMIT.fullmatch(commit):  # it becomes part of paths
            raise HubError(
                f"{repo_id}@{revision} is at {printable(commit)}, which is no commit",
                f"What answers at {constants.ENDPOINT} is no Hub: check HF_ENDPOINT.",
            )
    # The client itself retries this call.
    entries = client.list_repo_tree(repo_id, recursive=True, revision=commit)
    files = {
        entry.path: RemoteFile(entry.size, _digest(entry))
        for entry in entries
        if isinstance(entry, RepoFile) and _is_inside(entry.path)
    }
    if commit != revision:
        hub_cache.note_commit(repo_id, revision, commit)
    return Listing(commit, files, f"at {commit}")


def _digest(entry: RepoFile) -> str:
    """Return the digest of an entry in the form of `FileIdentity`; "" if it is none."""
    kind, text = ("sha256", entry.lfs.sha256) if entry.lfs else ("git", entry.blob_id)
    return f"{kind}:{text}" if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) else ""


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and ".." not in PurePosixPath(path).parts


def _cached(repo_id: str, revision: str) -> Listing | None:
    commit = revision if _COMMIT.fullmatch(revision) else hub_cache.find_commit(repo_id, revision)
    files = hub_cache.list_snapshot(repo_id, commit) if commit else None
    if commit is None or files is None:
        return None
    return Listing(commit, files, f"in the cache at {commit}, and the Hub is not asked")


def _unknown(repo_id: str, revision: str) -> Listing:
    raise HubError(
        f"{repo_id}@{revision} is not in the cache, and HF_HUB_OFFLINE is set",
        f"Unset it, or run `hf download {repo_id} --revision {revision}` where there is a network.",
    )
