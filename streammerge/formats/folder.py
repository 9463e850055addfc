"""A folder of safetensors files as a checkpoint: one file, or shards with an index.

Which files count is read from the index alone; what lies beside it is never looked at. Opening
reads the index, config.json and the headers, nothing else.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from streammerge.errors import (
    CheckpointError,
    HeaderError,
    IndexFileError,
    UnsupportedError,
    is_unicode,
    listing,
    printable,
)
from streammerge.formats.limits import refuse_length
from streammerge.formats.refusals import refuse_other_weights, refuse_quantized
from streammerge.formats.safetensors import Header, Location, load_json_object, read_header
from streammerge.formats.side_files import select_side_files
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader, Storage
from streammerge.tensors import TensorInfo

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_CARD = 1_000_000
_INDEX_SUFFIX = ".safetensors.index.json"


class SafetensorsCheckpoint:
    """Sharded or single safetensors weights with their side files; see `checkpoint.Checkpoint`."""

    def __init__(self, storage: Storage, weights: str | None = None) -> None:
        """Open a checkpoint.

        Args:
            storage: the folder.
            weights: the weight file or index in it; found by itself where None.

        Raises:
            CheckpointError: it is no checkpoint, breaks the format, or is refused on purpose.
        """
        self.label = storage.label if weights is None else storage.name(weights)
        self.pinned = storage.pinned
        self.notes: list[str] = []
        self.scratch = 0
        self._storage = storage
        self._listed = storage.list()
        found = weights or self._find_weights()
        if not is_unicode(found):
            raise CheckpointError(
                f"the file name {printable(found)} in {self.label} is not Unicode", "Rename it."
            )
        headers = self._open_shards(found) if found.endswith(".json") else self._open_file(found)
        self.tensors: dict[str, TensorInfo] = {}
        self._locations: dict[str, Location] = {}
        for header in headers.values():
            self.tensors |= header.tensors
            self._locations |= header.locations
        self._header_digests = {
            file: hashlib.sha256(header.raw).hexdigest() for file, header in headers.items()
        }
        refuse_quantized(self.label, self.tensors.values(), self.config, self._listed)
        self._refuse_other_modules()

    def _find_weights(self) -> str:
        files = self._listed
        for name in (INDEX_FILE, SINGLE_FILE):
            if name in files:
                if name == INDEX_FILE and SINGLE_FILE in files:
                    self.notes.append(
                        f"{self.label} has both {INDEX_FILE} and {SINGLE_FILE}: the index is used; "
                        f"transformers would load {SINGLE_FILE}"
                    )
                return name
        names = [n for n in files if n.endswith(_INDEX_SUFFIX)]
        names = names or [n for n in files if n.endswith(".safetensors")]
        names = [n for n in names if not n.startswith("adapter_")]
        if len(names) > 1:
            raise CheckpointError(
                f"{self.label} holds {len(names)} weight files and no index that says which count:"
                f"\n{listing(names)}",
                f"Give the path of one of them, e.g. {printable(self._storage.name(names[0]))}.",
            )
        if not names:
            if "model_index.json" in files:
                raise UnsupportedError(
                    f"{self.label} is a diffusers pipeline",
                    "Merge its components one by one, e.g. its folders `unet` or `transformer`.",
                )
            refuse_other_weights(self.label, files)
        return names[0]

    def _open_file(self, file: str) -> dict[str, Header]:
        if not file.endswith(".safetensors"):
            refuse_other_weights(self.label, [posixpath.basename(file)])
        return {file: read_header(self._storage, file)}

    def _open_shards(self, index_file: str) -> dict[str, Header]:
        where = f"{self._storage.label}/{index_file}"
        weight_map = self._read_weight_map(index_file, where)
        headers: dict[str, Header] = {}
        for file in dict.fromkeys(weight_map.values()):
            if file not in self._listed:
                raise IndexFileError(
                    f"{where} names the shard {printable(file)}, which is not there",
                    "Download the missing shard, or save the checkpoint again.",
                )
            headers[file] = read_header(self._storage, file)
        actual: dict[str, list[str]] = {}
        for file, header in headers.items():
            for name in header.tensors:
                actual.setdefault(name, []).append(file)
        wrong = [
            f"{name}: {weight_map.get(name, 'nowhere')} in the index, "
            f"{' and '.join(actual.get(name, ['nowhere']))} in the shards"
            for name in sorted(weight_map.keys() | actual.keys())
            if actual.get(name) != [weight_map.get(name)]
        ]
        if wrong:
            raise IndexFileError(
                f"{where} disagrees with its shards about {len(wrong)} tensors:\n{listing(wrong)}",
                "The folder mixes two checkpoints or a download is incomplete: fetch it again.",
            )
        return headers

    def _read_weight_map(self, index_file: str, where: str) -> dict[str, str]:
        try:
            length = self._storage.identity(index_file).size
            refuse_length("the index", length, self._weight_bytes)
            index = load_json_object(self._storage.read(index_file), "the index")
        except HeaderError as error:
            raise IndexFileError(
                f"{where}: {error.message}", "Download it and its shards again."
            ) from error
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise IndexFileError(f"{where} has no weight_map", "Download it again.")
        for name, file in weight_map.items():
            if not isinstance(file, str) or not _is_plain(file):
                raise IndexFileError(
                    f"{where} places tensor {printable(name)} in {printable(repr(file))}, "
                    "which is not a plain file name ending in .safetensors",
                    "An index may only name files beside it; do not trust this checkpoint.",
                )
        return weight_map

    @property
    def _weight_bytes(self) -> int:
        return sum(n for file, n in self._listed.items() if file.endswith(".safetensors"))

    def _refuse_other_modules(self) -> None:
        extra = [f for f in self.side_files() if f.endswith("/config.json")]
        for folder in (posixpath.dirname(file) for file in extra):
            weights = [
                f for f in self._storage.list(folder) if f.endswith((".safetensors", ".bin"))
            ]
            if weights:
                raise UnsupportedError(
                    f"{self.label} is a sentence-transformers model with weights in several "
                    f"folders ({printable(weights[0])})",
                    "Merge each folder with weights by itself, then put the results together.",
                )

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json; empty where there is none."""
        if "config.json" not in self._listed:
            return {}
        try:
            refuse_length("the file", self._listed["config.json"], self._weight_bytes)
            return load_json_object(self._storage.read("config.json"), "the file")
        except HeaderError as error:
            raise CheckpointError(
                f"{self._storage.label}/config.json: {error.message}", "Repair or remove it."
            ) from error

    @cached_property
    def _side_files(self) -> Mapping[str, FileIdentity]:
        paths = select_side_files(self._storage, self.config)
        return {path: self._storage.identity(path) for path in paths}

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Return path and identity of each file that a loader of the merged model needs."""
        return self._side_files

    def read_side_file(self, path: str) -> bytes:
        """Return the content of a side file."""
        return self._storage.read(path)

    def card(self) -> str:
        """Return README.md; empty where there is none, or it is no text."""
        if self._listed.get("README.md", _MAX_CARD + 1) > _MAX_CARD:
            return ""
        return self._storage.read("README.md").decode(errors="replace")

    def locate(self, name: str) -> Location:
        """Return where the bytes of a tensor lie."""
        return self._locations[name]

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Open one of the files that `locate` names."""
        return self._storage.open(file, mode)

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what must happen before the bytes of these tensors can be read from here."""
        files = sorted({self._locations[name].file for name in names})
        pending = (self._storage.pending(file) for file in files)
        return [download for download in pending if download is not None]

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return, for each weight file, its identity and the sha256 of its header."""
        return {
            file: (self._storage.identity(file), digest)
            for file, digest in self._header_digests.items()
        }


def _is_plain(file: str) -> bool:
    forbidden = ("/", "\\", "\0", ":")
    plain = file.endswith(".safetensors") and not any(c in file for c in forbidden)
    return plain and is_unicode(file)
