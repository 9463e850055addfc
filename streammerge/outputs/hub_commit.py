"""One commit that makes a model visible: all of it or nothing, and made once.

The commit names its parent, so the Hub refuses it (412) if the branch has moved. Before each try
the branch is looked at: if it has what was to be committed, an earlier try went through and only
its answer was lost; if somebody else has changed what belongs to a model, nothing is committed. So
trying again can neither commit twice nor overwrite what nobody has seen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from streammerge.errors import HubError, listing
from streammerge.formats.side_files import is_side_file
from streammerge.hub import explain, refusals, root_cause, status_of
from streammerge.outputs import Pushed
from streammerge.outputs.hub_client import addition, git_id
from streammerge.outputs.hub_repository import Repository, Snapshot
from streammerge.storage.retrying import LONG_TRIES, BrokenAnswer, Patience, retried

TRIES = 6
"""At one commit, with a quarter of a minute between the first and the last."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "consolidated*.pth")
_TERMS = ("LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
_PULL = re.compile(r"refs/pr/(\d+)")
_LOOKED_AT = 10  # pull requests, the newest, among which one of an earlier try is looked for


def belongs_to_a_model(path: str) -> bool:
    """Whether a loader may read a file: then one of an older model must not stay beside ours."""
    if any(fnmatchcase(path, pattern) for pattern in _TERMS):
        return False
    weights = "/" not in path and any(fnmatchcase(path, pattern) for pattern in _WEIGHTS)
    return weights or is_side_file(path)


@dataclass(frozen=True, slots=True)
class Parcel:
    """One file to be committed, and the ids that it may have once it is there."""

    operation: CommitOperationAdd
    ids: frozenset[str]


def parcel_of(path: str, content: bytes) -> Parcel:
    """Return the parcel of a small file."""
    digest = hashlib.sha256(content).hexdigest()
    return Parcel(addition(path, content, digest), frozenset({digest, git_id(content)}))


class Commit:
    """One commit to be.

    Args:
        repository: where.
        base: what lay on the branch when the merge began.
        parcels: every file of the model.
        models: how many models were merged into it.
        fingerprint: of the plan.
    """

    def __init__(
        self,
        repository: Repository,
        base: Snapshot,
        parcels: Sequence[Parcel],
        models: int,
        fingerprint: str,
    ) -> None:
        self._repository, self._base = repository, base
        self._operations = [parcel.operation for parcel in parcels]
        self._wanted = {parcel.operation.path_in_repo: parcel.ids for parcel in parcels}
        self._message = f"Merge of {models} models with streammerge"
        self._description = f"Plan {fingerprint}"
        self._destination = repository.destination

    def make(self) -> Pushed:
        """Send what is still to be sent and commit, unless all of it is there already.

        Raises:
            HubError: nothing was committed, or it is not known whether; the message says which.
        """
        self._repository.upload(self._operations)
        patience = Patience(TRIES)
        failure: Exception | None = None
        again = True
        while True:
            head, done = self._look(failure)
            if done is not None:
                return done
            if failure is not None and not again:
                raise self._not_committed(failure) from failure
            self._refuse_foreign_changes(head)
            try:
                return self._try(head)
            except Exception as error:
                failure, again = error, _is_worth_another_try(error, patience)

    def _look(self, failure: Exception | None) -> tuple[Snapshot, Pushed | None]:
        """Return what lies on the branch, and the push if it has all that was to be committed."""
        unclear = "find out whether the commit was made to"
        with refusals("commit to" if failure is None else unclear, self._destination.repo):
            head = retried(self._repository.snapshot, LONG_TRIES)
            pulls = retried(self._pull_requests) if self._destination.create_pr else {}
        new = failure is not None
        if self._is_there(head):
            return head, self._pushed(head.commit, new)
        for number, pull in pulls.items():
            if self._is_there(pull):
                return head, self._pushed(pull.commit, new, number)
        return head, None

    def _pull_requests(self) -> dict[int, Snapshot]:
        """Return what lies on the newest pull requests, by number."""
        client, repo = self._repository.client, self._destination.repo
        refs = client.list_repo_refs(repo, include_pull_requests=True).pull_requests or []
        found = {int(match[1]): ref for ref in refs if (match := _PULL.fullmatch(ref.ref))}
        newest = sorted(found, reverse=True)[:_LOOKED_AT]
        return {n: self._repository.snapshot(found[n].target_commit) for n in newest}

    def _is_there(self, found: Snapshot) -> bool:
        files = found.files
        return not self._stale(found) and all(
            files.get(path) in ids for path, ids in self._wanted.items()
        )

    def _stale(self, found: Snapshot) -> list[str]:
        """Return the files of another model that would be mixed with ours."""
        foreign = found.files.keys() - self._wanted.keys()
        return sorted(path for path in foreign if belongs_to_a_model(path))

    def _refuse_foreign_changes(self, head: Snapshot) -> None:
        old, new = self._base.files, head.files
        changed = sorted(
            path
            for path in old.keys() | new.keys()
            if old.get(path) != new.get(path) and (path in self._wanted or belongs_to_a_model(path))
        )
        if changed:
            branch = self._destination.branch
            raise HubError(
                f"{self._destination.repo} was changed on {branch} by somebody else meanwhile, "
                f"so nothing was committed:\n{listing(changed)}",
                f"Look at {self._repository.url}/commits/{branch}. To replace it, try again: what "
                "was sent is not sent again.",
            )

    def _try(self, head: Snapshot) -> Pushed:
        destination = self._destination
        deletions = [CommitOperationDelete(path, is_folder=False) for path in self._stale(head)]
        info = self._repository.client.create_commit(
            destination.repo,
            [*self._operations, *deletions],
            commit_message=self._message,
            commit_description=self._description,
            revision=destination.branch,
            create_pr=destination.create_pr,
            parent_commit=head.commit,
        )
        return self._pushed(info.oid, True, info.pr_num)

    def _pushed(self, commit: str, new: bool, pull: int | None = None) -> Pushed:
        page = f"discussions/{pull}" if pull is not None else f"commit/{commit}"
        return Pushed(
            repo=self._destination.repo,
            branch=f"refs/pr/{pull}" if pull is not None else self._destination.branch,
            commit=commit,
            url=f"{self._repository.url}/{page}",
            new=new,
        )

    def _not_committed(self, failure: Exception) -> HubError:
        error = explain(failure, "commit to", self._destination.repo)
        return HubError(
            f"{error.message}; {self._destination.branch} is as it was",
            f"{error.remedy} What was sent is not sent again.",
        )


def _is_worth_another_try(error: Exception, patience: Patience) -> bool:
    """Whether the failure of a commit may pass; waits for that."""
    conflict = status_of(error) in (409, 412)  # the next look at the branch tells what to do
    try:
        patience.wait(BrokenAnswer() if conflict else root_cause(error))
    except Exception:
        return False
    return True
