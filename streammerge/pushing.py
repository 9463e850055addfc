"""A finished output on this machine, checked and pushed to the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from streammerge.checks import CheckProgress, Finding
from streammerge.checks.digests import check_files
from streammerge.checks.structure import check_structure, read_headers
from streammerge.errors import OutputError, listing
from streammerge.outputs import CARD, Pushed
from streammerge.outputs.manifest import MANIFEST, Manifest, read_manifest
from streammerge.storage.local import LocalStorage


def push(
    out: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    branch: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    verify: bool = False,
    progress: CheckProgress = lambda stage, nbytes, total: None,
) -> Pushed:
    """Push a folder that streammerge wrote to a repository on the Hub, in one commit.

    The folder must be complete and as it was written; only the card may have been edited. The
    sha256 of its files are those in streammerge.json: a weight file is read to be hashed only
    where it is newer than that, or with `verify`.

    Args:
        out: the folder.
        repo: namespace/name of the repository; made if missing.
        private: make it private, if it has to be made.
        branch: branch to commit to; "main" by default, made if missing.
        create_pr: open a pull request instead of moving the branch.
        token: for the Hub; the one that is logged in by default.
        verify: read every byte and compare it with streammerge.json first.
        progress: called with the stage, the bytes done since the last call, and those of the stage.

    Raises:
        ManifestError: there is no streammerge.json, or nothing can be made of it.
        OutputError: the folder is not as it was written.
        HubError: the Hub refuses, or cannot be reached.
    """
    from streammerge.outputs.hub_push import push_folder
    from streammerge.outputs.hub_repository import Repository, parse_destination

    options = {"private": private, "create_pr": create_pr, "token": token}
    repository = Repository(parse_destination(repo, branch, **options))
    storage = LocalStorage(os.fspath(out))
    manifest, intact = read_manifest(storage)
    repository.check()
    findings = [] if intact else [Finding(MANIFEST, "was changed: its checksum does not match")]
    findings += _check(storage, manifest, verify, progress)
    if findings:
        found = listing(f"{finding.where}: {finding.what}" for finding in findings)
        raise OutputError(
            f"{storage.label} is not as it was written, so it is not pushed:\n{found}",
            "Merge again, or put back what was changed; only the card may be edited.",
        )
    total = sum(shard.bytes for shard in manifest.shards)
    base = repository.prepare()
    return push_folder(
        repository, base, Path(out), manifest, lambda nbytes: progress("sending", nbytes, total)
    )


def _check(
    storage: LocalStorage, manifest: Manifest, verify: bool, progress: CheckProgress
) -> list[Finding]:
    headers, findings = read_headers(storage, manifest)
    findings += check_structure(storage, manifest, headers)
    trusted = set() if verify else _unchanged(storage, manifest)
    findings += check_files(storage, manifest, progress, {*trusted, CARD})
    return findings


def _unchanged(storage: LocalStorage, manifest: Manifest) -> set[str]:
    """Return the weight files that are no newer than the manifest, which was written after them."""
    written = os.stat(storage.path(MANIFEST)).st_mtime_ns
    files = [shard.file for shard in manifest.shards if storage.path(shard.file).is_file()]
    return {file for file in files if os.stat(storage.path(file)).st_mtime_ns <= written}
