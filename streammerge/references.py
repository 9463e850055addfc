"""What a user writes to name a model.

    path/to/model                   a folder or file on this machine, where there is one
    org/name                        a repository on the Hub
    org/name@revision               a branch, tag, pull request or commit of it
    org/name@revision:subfolder     the folder of it where the weights lie, or one weight file
    hf://org/name                   on the Hub even where a path of that name exists
    MODEL+ADAPTER                   a model with a LoRA adapter on it, each written as above

Only the first is looked at here; nothing is asked of the Hub.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from streammerge.errors import CheckpointError, printable

HUB_SCHEME = "hf://"
_REPOSITORY = re.compile(
    r"(\w[\w.-]*/\w[\w.-]*)(?:@([^:\s]+))?(?::([^:\s]+))?",  # repository, revision, subfolder
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A name taken apart; either `path` or `repo_id` is set.

    Attributes:
        text: as the user wrote it.
        path: folder or file on this machine.
        repo_id: "org/name" on the Hub.
        revision: branch, tag or commit; "" for the main branch.
        subfolder: folder or weight file in the repository; "" for its root.
        adapter: the LoRA adapter to be applied to it.
    """

    text: str
    path: str = ""
    repo_id: str = ""
    revision: str = ""
    subfolder: str = ""
    adapter: Reference | None = None

    @property
    def is_local(self) -> bool:
        """Whether it names something on this machine; an adapter may still lie on the Hub."""
        return not self.repo_id

    def pinned(self, commit: str) -> str:
        """Return the reference of the same place at a commit, without the adapter."""
        return f"{self.repo_id}@{commit}" + (f":{self.subfolder}" if self.subfolder else "")


def parse_reference(text: str) -> Reference:
    """Take a reference apart; what exists on this machine wins over the Hub.

    Raises:
        CheckpointError: nothing is there, and it cannot name a repository either.
    """
    if not _exists(text):
        # A branch may hold a "+" too: it separates only where an adapter can follow.
        head, _, tail = text.rpartition("+")
        adapter = _parse_model(tail)
        model = _parse_model(head) if adapter else None
        if model is not None:
            return replace(model, text=text, adapter=adapter)
    model = _parse_model(text)
    if model is None:
        raise CheckpointError(
            f"there is no checkpoint at {printable(repr(text))}",
            "Give the path of a folder or .safetensors file, or a model on the Hub as org/name, "
            "org/name@revision or org/name@revision:subfolder.",
        )
    return model


def _parse_model(text: str) -> Reference | None:
    """Return a reference without adapter; None for what can be neither path nor repository."""
    if not text.startswith(HUB_SCHEME) and _exists(text):
        return Reference(text, path=text)
    found = _REPOSITORY.fullmatch(text.removeprefix(HUB_SCHEME))
    if found is None:
        return None
    repo_id, revision, subfolder = (part or "" for part in found.groups())
    if not all(_is_plain(part) for part in (revision, subfolder) if part):
        return None
    return Reference(text, "", repo_id, revision, subfolder)


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)
    except ValueError:  # NUL in a path
        return False


def _is_plain(path: str) -> bool:
    """Whether a path in a repository, or a revision, leads nowhere else when used as a path."""
    return all(part not in ("", ".", "..") for part in path.split("/")) and "\\" not in path
