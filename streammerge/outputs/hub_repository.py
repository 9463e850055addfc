"""One branch of a repository on the Hub: may we write, what lies there, and large files sent ahead.

Files that were sent are nowhere to be seen until a commit names them (`hub_commit`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from streammerge.errors import HubError, OutputError, listing, printable
from streammerge.hub import LOG_IN, make_client, no_bars, refusals, root_cause
from streammerge.outputs import WrittenShard
from streammerge.outputs.hub_client import find_stored, is_left_out
from streammerge.references import HUB_SCHEME
from streammerge.storage.retrying import LONG_TRIES, retried

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class Destination:
    """A branch of a model repository, and how to write there.

    Attributes:
        repo: namespace/name; made if missing.
        branch: made from main if missing.
        private: whether a new repository is private.
        create_pr: open a pull request on the branch instead of moving it.
        token: None for the one that is logged in.
    """

    repo: str
    branch: str = "main"
    private: bool = False
    create_pr: bool = False
    token: str | None = None

    @property
    def label(self) -> str:
        """How a user writes it."""
        return f"{HUB_SCHEME}{self.repo}" + (f"@{self.branch}" if self.branch != "main" else "")

    def push_command(self, folder: str) -> list[str]:
        """Return the command line that pushes a finished folder here."""
        words = ["streammerge", "push", folder, self.repo]
        words += ["--branch", self.branch] if self.branch != "main" else []
        words += ["--private"] if self.private else []
        return words + (["--create-pr"] if self.create_pr else [])


def parse_destination(text: str, branch: str | None = None, **options: Any) -> Destination:
    """Return the destination of "me/merged", "hf://me/merged" or "hf://me/merged@branch".

    Raises:
        OutputError: it is none of these, or names two branches.
    """
    repo, at, named = text.removeprefix(HUB_SCHEME).partition("@")
    if not _NAME.fullmatch(repo) or (at and not named):
        raise OutputError(
            f"{printable(text)!r} is no repository on the Hub",
            "Give namespace/name, e.g. me/merged, or hf://me/merged@branch as the output.",
        )
    if named and branch and named != branch:
        raise OutputError(f"both {named!r} and {branch!r} are to be the branch", "Give one.")
    return Destination(repo, named or branch or "main", **options)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit and its files: for each path, git's id of it, or the sha256 of a large file."""

    commit: str
    files: Mapping[str, str]


class Repository:
    """What a push needs of one destination; each call raises HubError where the Hub refuses."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.client: HfApi = make_client(destination.token)
        self.url = f"{self.client.endpoint}/{destination.repo}"

    def check(self) -> None:
        """Refuse what will not be possible after hours of merging; changes nothing.

        Raises:
            HubError: nobody is logged in, the token cannot write, the namespace or repository is
                somebody else's, or the Hub cannot be reached.
        """
        repo, branch = self.destination.repo, self.destination.branch
        with refusals("write to", repo):
            if not (self.destination.token or get_token()):
                raise HubError(f"cannot write to {repo}: nobody is logged in", _log_in())
            account = retried(self.client.whoami)
            if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
                message = f"cannot write to {repo}: the token of {account['name']} is read-only"
                raise HubError(message, _log_in())
            try:
                private = retried(lambda: self.client.model_info(repo)).private
            except RepositoryNotFoundError:
                self._check_namespace(account)
                return
            if self.destination.private and not private:
                raise HubError(
                    f"{repo} exists and is public, and --private would not change that",
                    f"Make it private at {self.url}/settings, or choose another name.",
                )
            if not self.destination.create_pr:
                retried(lambda: self.client.auth_check(repo, write=True))
            if branch.startswith("refs/") or self.destination.create_pr:
                retried(lambda: self.client.model_info(repo, revision=branch))

    def _check_namespace(self, account: Mapping[str, Any]) -> None:
        """Refuse to make a repository in a namespace that is not the user's."""
        repo = self.destination.repo
        orgs = [org["name"] for org in account.get("orgs", ()) if org.get("roleInOrg") != "read"]
        if repo.split("/")[0].lower() not in (name.lower() for name in (account["name"], *orgs)):
            raise HubError(
                f"there is no {repo} that you can see, and {account['name']} cannot make it",
                f"Choose a name in one of your namespaces:\n{listing([account['name'], *orgs])}",
            )

    def prepare(self) -> Snapshot:
        """Make repository and branch where they are missing; return what lies there."""
        repo, branch = self.destination.repo, self.destination.branch
        with refusals("prepare", repo):
            try:
                retried(lambda: self.client.model_info(repo))
            except RepositoryNotFoundError:
                # True or nothing: an organization may make its repositories private by default.
                private = self.destination.private or None
                retried(lambda: self.client.create_repo(repo, private=private, exist_ok=True))
            try:
                return retried(self.snapshot)
            except RevisionNotFoundError:
                retried(lambda: self.client.create_branch(repo, branch=branch, exist_ok=True))
                return retried(self.snapshot)

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """Return what lies on the branch, or at another revision; errors are the client's own."""
        repo = self.destination.repo
        info = self.client.model_info(repo, revision=revision or self.destination.branch)
        commit = str(info.sha)
        tree = self.client.list_repo_tree(repo, recursive=True, revision=commit)
        files = {
            entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        return Snapshot(commit, files)

    def stored(self, shards: Sequence[WrittenShard]) -> list[WrittenShard]:
        """Return those shards that the Hub holds for this repository, committed or not."""
        with refusals("ask what is on", self.destination.repo):
            return retried(lambda: find_stored(self.client, self.destination.repo, shards))

    def upload(self, operations: Sequence[CommitOperationAdd], stop: Event | None = None) -> None:
        """Send what is large and not on the Hub yet; the operations remember that they are.

        Args:
            operations: the files.
            stop: once it is set, nothing is tried again.
        """
        with refusals(f"upload {_names(operations)} to", self.destination.repo), no_bars():
            retried(lambda: self._preupload(operations), LONG_TRIES, stop)
        left_out = [operation.path_in_repo for operation in operations if is_left_out(operation)]
        if left_out:
            raise HubError(
                f"the .gitignore of {self.destination.repo} leaves out files of the model:\n"
                f"{listing(left_out)}",
                "Take these lines out of it, or choose another repository.",
            )

    def _preupload(self, operations: Sequence[CommitOperationAdd]) -> None:
        try:
            self.client.preupload_lfs_files(
                self.destination.repo,
                additions=operations,
                revision=self.destination.branch,
                create_pr=self.destination.create_pr,
            )
        except RuntimeError as error:  # the client's wrapper around what went wrong with a file
            if (cause := root_cause(error)) is error:
                raise
            raise cause from None  # it is the wrapper's cause already: no circle


def _log_in() -> str:
    return f"{constants.ENDPOINT}/settings/tokens gives tokens with write access. {LOG_IN}"


def _names(operations: Sequence[CommitOperationAdd]) -> str:
    first = operations[0].path_in_repo
    return first if len(operations) == 1 else f"{first} and {len(operations) - 1} more files"
