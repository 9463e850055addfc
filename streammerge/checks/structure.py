"""Is the output a checkpoint: headers, index and counts agree, and nothing lies beside them?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from streammerge.checks import Finding
from streammerge.errors import CheckpointError, HeaderError, listing
from streammerge.formats.folder import INDEX_FILE, SINGLE_FILE
from streammerge.formats.limits import refuse_length
from streammerge.formats.safetensors import Header, load_json_object, read_header
from streammerge.outputs.directory import STAGING
from streammerge.outputs.manifest import MANIFEST, Manifest
from streammerge.storage.local import LocalStorage

_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".gguf")


def read_headers(
    storage: LocalStorage, manifest: Manifest
) -> tuple[dict[str, Header], list[Finding]]:
    """Return the headers of the shards that have a valid one, and what is wrong with the others.

    A shard that is missing is left to `digests.check_files`.
    """
    headers, findings = {}, []
    for shard in manifest.shards:
        if os.path.isfile(storage.path(shard.file)):
            try:
                headers[shard.file] = read_header(storage, shard.file)
            except CheckpointError as error:
                findings.append(Finding(shard.file, error.message))
    return headers, findings


def check_structure(
    storage: LocalStorage, manifest: Manifest, headers: Mapping[str, Header]
) -> Iterator[Finding]:
    """Yield what keeps the output from being one checkpoint, all of it and nothing else."""
    yield from _strays(storage, manifest)
    names = [shard.file for shard in manifest.shards]
    if len(headers) == len(names):  # with a shard missing or broken, sums mean nothing
        yield from _check_counts(manifest, headers)
    if len(names) == 1:
        if names[0] != SINGLE_FILE:
            yield Finding(names[0], f"loaders look for {SINGLE_FILE}")
    elif os.path.isfile(storage.path(INDEX_FILE)):
        try:
            length = storage.identity(INDEX_FILE).size
            refuse_length("the index", length, sum(storage.list().values()))
            index = load_json_object(storage.read(INDEX_FILE), "the index")
        except (CheckpointError, HeaderError) as error:
            yield Finding(INDEX_FILE, error.message)
        else:
            yield from _check_index(index, manifest, headers)
    elif INDEX_FILE not in manifest.files:  # else its digest is missed
        yield Finding(INDEX_FILE, "is missing")


def _strays(storage: LocalStorage, manifest: Manifest) -> Iterator[Finding]:
    """Yield weights that are not of this output: some loaders would prefer them."""
    known = {shard.file for shard in manifest.shards} | set(manifest.files) | {MANIFEST}
    if os.path.lexists(storage.path(STAGING)):
        yield Finding(STAGING, "is left of a merge that did not end")
    for folder, folders, files in os.walk(storage.root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = os.path.relpath(os.path.join(folder, file), storage.root).replace(os.sep, "/")
            if file.endswith(_WEIGHTS) and path not in known:
                yield Finding(path, "is no part of this output, but a loader may take it for one")


def _check_counts(manifest: Manifest, headers: Mapping[str, Header]) -> Iterator[Finding]:
    places = Counter(name for header in headers.values() for name in header.tensors)
    twice = sorted(name for name, count in places.items() if count > 1)
    if twice:
        yield Finding(MANIFEST, f"{len(twice)} tensors lie in several shards:\n{listing(twice)}")
    tensors = [tensor for header in headers.values() for tensor in header.tensors.values()]
    for what, wanted, found in (
        ("tensors", manifest.tensors, len(tensors)),
        ("parameters", manifest.parameters, sum(tensor.numel for tensor in tensors)),
        ("bytes of tensor data", manifest.bytes, sum(tensor.nbytes for tensor in tensors)),
    ):
        if wanted != found:
            yield Finding(MANIFEST, f"{wanted:,} {what} were written, the shards hold {found:,}")


def _check_index(
    index: Mapping[str, Any], manifest: Manifest, headers: Mapping[str, Header]
) -> Iterator[Finding]:
    recorded = index.get("weight_map")
    weight_map = recorded if isinstance(recorded, dict) else {}
    shards = {shard.file for shard in manifest.shards}
    foreign = sorted(str(file) for file in {*map(str, weight_map.values())} - shards)
    if foreign:
        yield Finding(INDEX_FILE, f"names {len(foreign)} foreign files:\n{listing(foreign)}")
    actual = {name: file for file, header in headers.items() for name in header.tensors}
    lost = {name for name, file in weight_map.items() if file in headers} - actual.keys()
    wrong = sorted({name for name, file in actual.items() if weight_map.get(name) != file} | lost)
    if wrong:
        yield Finding(
            INDEX_FILE, f"disagrees with the shards about {len(wrong)} tensors:\n{listing(wrong)}"
        )
    metadata = {"total_parameters": manifest.parameters, "total_size": manifest.bytes}
    if index.get("metadata") != metadata:
        yield Finding(INDEX_FILE, f"its metadata should be {metadata}")
