"""streammerge.json: what was merged how, and the digest of every file that came of it.

It names every other file of an output with its sha256, and its own checksum covers the rest of it.
Its bytes are the canonical JSON of its content, so that even a changed space is found.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from streammerge.errors import CheckpointError, HeaderError, ManifestError, printable
from streammerge.formats.limits import refuse_length
from streammerge.formats.safetensors import load_json_object
from streammerge.outputs import WrittenShard, count_nonfinite
from streammerge.plan import Plan, PlanInput
from streammerge.recipe import Recipe
from streammerge.storage import Storage

MANIFEST = "streammerge.json"


def _inside(path: str) -> str:
    """Refuse a path that leads out of the output."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("not a path below the output")
    return path


_Path = Annotated[str, AfterValidator(_inside)]


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True)


class ShardRecord(_Data):
    """A weight file: its name, bytes and sha256."""

    file: _Path
    bytes: int
    sha256: str


class Manifest(_Data):
    """The content of streammerge.json.

    Attributes:
        streammerge: version that wrote it.
        arithmetic: see `plan.ARITHMETIC`.
        fingerprint: of the plan.
        command: what was typed.
        recipe, inputs: enough to plan and compute the output again.
        tensors, parameters, bytes: of the output: how many, elements, bytes of tensor data.
        shards: the weight files, by name.
        files: sha256 of every other file, but for this one.
        notes: what the user was told.
        nonfinite, nonfinite_inputs: NaN and infinite elements by tensor, and those of each input by
            its label, where they were allowed.
        checksum: sha256 of the canonical JSON of all of the above.
    """

    streammerge: str
    arithmetic: int
    fingerprint: str
    command: str
    recipe: Recipe
    inputs: tuple[PlanInput, ...]
    tensors: int
    parameters: int
    bytes: int
    shards: tuple[ShardRecord, ...]
    files: dict[_Path, str]
    notes: tuple[str, ...]
    nonfinite: dict[str, int]
    nonfinite_inputs: dict[str, int] = {}
    checksum: str

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        files = [shard.file for shard in self.shards]
        if not files or len({*files, *self.files, MANIFEST}) != len(files) + len(self.files) + 1:
            raise ValueError("the files are none, or given twice")
        if len(self.recipe.inputs) != len(self.inputs):
            raise ValueError("the models are not the inputs")
        return self


def encode_manifest(
    plan: Plan,
    shards: Sequence[WrittenShard],
    documents: Mapping[str, bytes],
    command: Sequence[str],
) -> bytes:
    """Return the bytes of streammerge.json.

    Args:
        plan: what was done.
        shards: what was written.
        documents: every other file of the output.
        command: the arguments that led here.
    """
    nonfinite, nonfinite_inputs = count_nonfinite(shards)
    content = {
        "streammerge": plan.streammerge,
        "arithmetic": plan.arithmetic,
        "fingerprint": plan.fingerprint(),
        "command": shlex.join(command),
        "recipe": plan.recipe.model_dump(mode="json"),
        "inputs": [model.model_dump(mode="json") for model in plan.inputs],
        "tensors": len(plan.tensors),
        "parameters": plan.parameters,
        "bytes": plan.nbytes,
        "shards": [
            {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256} for shard in shards
        ],
        "files": {name: hashlib.sha256(documents[name]).hexdigest() for name in sorted(documents)},
        "notes": list(plan.notes),
        "nonfinite": nonfinite,
        "nonfinite_inputs": nonfinite_inputs,
    }
    return encode_json({**content, "checksum": _checksum(content)})


def read_manifest(storage: Storage) -> tuple[Manifest, bool]:
    """Return the manifest of an output, and whether its bytes are those that were written.

    Raises:
        ManifestError: there is none, or nothing can be made of it.
    """
    where = printable(f"{storage.label}/{MANIFEST}")
    files = storage.list()
    if MANIFEST not in files:
        raise ManifestError(
            f"there is no {where}", "Only what streammerge wrote can be verified: give its folder."
        )
    try:
        refuse_length("the file", files[MANIFEST], sum(files.values()))
        raw = storage.read(MANIFEST)
        content = load_json_object(raw, "the file")
        manifest = Manifest.model_validate_json(raw)
    except HeaderError as error:
        raise ManifestError(f"{where}: {error.message}", _REMEDY) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = printable(".".join(str(part) for part in first["loc"]), 80)
        raise ManifestError(f"{where}: {place}: {printable(first['msg'], 80)}", _REMEDY) from error
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return manifest, raw == encode_json(content) and manifest.checksum == _checksum(rest)


def published(storage: Storage, plan: Plan) -> Manifest | None:
    """Return the manifest of a folder where a plan was carried out to its end; None elsewhere.

    The files that it names are not looked at.
    """
    try:
        manifest, intact = read_manifest(storage)
    except (CheckpointError, ManifestError):
        return None
    return manifest if intact and manifest.fingerprint == plan.fingerprint() else None


def is_whole(root: Path, manifest: Manifest) -> bool:
    """Whether every file that a manifest names has the bytes that were written."""
    wanted = {shard.file: shard.sha256 for shard in manifest.shards} | manifest.files
    try:
        for name, sha256 in wanted.items():
            with open(root / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return False
    except OSError:
        return False
    return True


_REMEDY = "It is damaged, or another version of streammerge wrote it: merge again."


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode_json(content)).hexdigest()


def encode_json(value: Any, sort: bool = False) -> bytes:
    """Return JSON as Hugging Face writes it: indented, with a newline at the end."""
    text = json.dumps(value, indent=2, sort_keys=sort, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # a path that is no Unicode: \udcxx, valid JSON
