"""A finished output checked: structure, digests, and if asked for its arithmetic and loading."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streammerge.checks import CheckProgress, Finding
from streammerge.checks.digests import check_files
from streammerge.checks.structure import check_structure, read_headers
from streammerge.errors import RecipeError
from streammerge.outputs.manifest import MANIFEST, read_manifest
from streammerge.storage.local import LocalStorage


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked, and what was found.

    Attributes:
        out: the folder.
        findings: everything that is not as it should be; none for a good output.
        shards, files: weight files, and other files, whose sha256 was compared.
        tensors, parameters, bytes: what the output holds.
        recomputed: tensors that were merged again and compared.
        loaded: the class by which transformers took the output; "" for none.
    """

    out: Path
    findings: list[Finding]
    shards: int
    files: int
    tensors: int
    parameters: int
    bytes: int
    recomputed: int
    loaded: str

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings


def verify(
    out: str | os.PathLike[str],
    *,
    recompute: int | Literal["all"] | None = None,
    load: bool = False,
    progress: CheckProgress = lambda stage, nbytes, total: None,
) -> Verification:
    """Check a folder that streammerge wrote: every byte of it, and that it is all there.

    Args:
        out: the folder.
        recompute: how many tensors to merge again from the inputs and compare bit by bit.
        load: have transformers load the structure, without weights in memory.
        progress: called with the stage, the bytes done since the last call, and those of the stage.

    Raises:
        ManifestError: there is no streammerge.json, or nothing can be made of it.
        RecipeError: `recompute` is no positive number and not "all".
    """
    if recompute not in (None, "all") and (not isinstance(recompute, int) or recompute < 1):
        raise RecipeError(
            f"recompute {recompute!r} makes no sense", "Give a number of tensors from 1, or all."
        )
    storage = LocalStorage(os.fspath(out))
    manifest, intact = read_manifest(storage)
    findings = [] if intact else [Finding(MANIFEST, "was changed: its checksum does not match")]
    headers, broken = read_headers(storage, manifest)
    findings += broken
    findings += check_structure(storage, manifest, headers)
    findings += check_files(storage, manifest, progress)
    recomputed, loaded = 0, ""
    if recompute is not None:
        from streammerge.checks.recompute import check_recomputed  # torch is loaded here

        count = None if recompute == "all" else int(recompute)
        recomputed, found = check_recomputed(storage, manifest, headers, count, progress)
        findings += found
    if load:
        from streammerge.checks.loading import check_load

        loaded, found = check_load(Path(out))
        findings += found
    return Verification(
        out=Path(out),
        findings=findings,
        shards=len(manifest.shards),
        files=len(manifest.files) + 1,
        tensors=manifest.tensors,
        parameters=manifest.parameters,
        bytes=manifest.bytes,
        recomputed=recomputed,
        loaded=loaded,
    )
