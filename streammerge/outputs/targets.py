"""From what a user writes behind -o and --push-to-hub to an output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from streammerge.errors import OutputError
from streammerge.outputs import Target
from streammerge.outputs.directory import DirectoryOutput
from streammerge.references import HUB_SCHEME, parse_reference


class HubOptions(TypedDict, total=False):
    """The options of a merge that say how it gets to the Hub.

    Keys:
        push_to_hub: namespace/name of a repository to which the finished folder is pushed.
        private: make the repository private, if it has to be made.
        branch: branch to commit to; "main" by default, made if missing.
        create_pr: open a pull request instead of moving the branch.
    """

    push_to_hub: str | None
    private: bool
    branch: str | None
    create_pr: bool


def open_output(
    out: str | os.PathLike[str],
    models: Sequence[str],
    overwrite: bool,
    token: str | None = None,
    **hub: Unpack[HubOptions],
) -> Target:
    """Return the output that a user names, without touching anything.

    Args:
        out: a folder, or hf://namespace/name[@branch].
        models: references of the inputs, which must not be written to.
        overwrite: whether an older checkpoint in a folder may be replaced.
        token: for the Hub; the one that is logged in by default.
        hub: see `HubOptions`.

    Raises:
        OutputError: the options contradict each other, or an input would be replaced.
    """
    inputs = [parse_reference(model) for model in models]
    local = [Path(model.path) for model in inputs if model.is_local]
    text, push_to_hub = os.fspath(out), hub.pop("push_to_hub", None)
    to_hub = text.startswith(HUB_SCHEME)
    if to_hub and push_to_hub is not None:
        raise OutputError(
            f"the output {text} is on the Hub already",
            "Give a folder with --output, or leave --push-to-hub out.",
        )
    if not to_hub and push_to_hub is None:
        told = [name for name in ("private", "branch", "create_pr") if hub.get(name)]
        if told:
            option = told[0].replace("_", "-")
            raise OutputError(
                f"--{option} says how to push, but nothing is to be pushed",
                "Give --push-to-hub namespace/name, or hf://namespace/name as the output.",
            )
        return DirectoryOutput(Path(text), local, overwrite)
    # The client of the Hub takes long to load, and most merges do without.
    from streammerge.outputs.hub import HubOutput
    from streammerge.outputs.hub_push import PushedDirectory
    from streammerge.outputs.hub_repository import parse_destination

    destination = parse_destination(text if to_hub else str(push_to_hub), token=token, **hub)
    if not destination.create_pr and any(
        model.repo_id == destination.repo and (model.revision or "main") == destination.branch
        for model in inputs
    ):
        raise OutputError(
            f"{destination.label} is one of the inputs, which would be replaced",
            "Choose another repository, another --branch, or --create-pr.",
        )
    if to_hub:
        return HubOutput(destination)
    folder = DirectoryOutput(Path(text), local, overwrite)
    return PushedDirectory(folder, Path(text), destination)
