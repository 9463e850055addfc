"""A checkpoint whose tensors with a row for each token are in the order of another vocabulary."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from streammerge.formats import Checkpoint
from streammerge.formats.safetensors import Location
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader
from streammerge.tensors import TensorInfo
from streammerge.views.arrays import Doubles
from streammerge.views.gather import CHUNK, SPARSE, Alignment, RowsReader
from streammerge.views.wrapping import Wrapping

_VIRTUAL = "vocabulary:"


class Realigned(Wrapping):
    """A checkpoint whose vocabulary tensors are put in another order; see `formats.Checkpoint`."""

    def __init__(self, base: Checkpoint, alignments: Mapping[str, Alignment]) -> None:
        super().__init__(base)
        self._alignments = dict(alignments)
        self._fillers: dict[str, Doubles] = {}
        self._lock = threading.Lock()
        for name, alignment in alignments.items():
            stored, info = base.tensors[name].dtype, alignment.info
            self.tensors[name] = TensorInfo(name, stored, info.shape)
            dtype = info.dtype if info.dtype != stored else ""
            self._moved[name] = Location(_VIRTUAL + name, 0, dtype)

    @property
    def scratch(self) -> int:
        """Bytes that a thread needs to read it; see `Checkpoint`."""
        if not self._alignments:
            return super().scratch
        row = max(8 * alignment.columns for alignment in self._alignments.values())
        used = {id(s): s.scratch for a in self._alignments.values() for s in a.sources}
        indices = sum(3 * alignment.rows.nbytes for alignment in self._alignments.values())
        rooms = len(self._alignments) * (SPARSE * CHUNK + row)
        return sum(used.values()) + indices + rooms + 8 * (CHUNK + row) + SPARSE * CHUNK

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Open a tensor with a row for each token, or a file of the checkpoint behind."""
        name = file.removeprefix(_VIRTUAL)
        if name != file and name in self._alignments:
            return RowsReader(name, self._alignments[name], mode, self._filler)
        return self.base.open(file, mode)

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what the model needs for these tensors, and those whose rows go into them."""
        wanted = list(names)
        found = super().downloads(wanted)
        for name in self._alignments.keys() & set(wanted):
            for source in self._alignments[name].sources:
                found += source.downloads([name] if name in source.tensors else [])
        return found

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return the files behind, and for each tensor that is put in order what it is made of."""
        own = {}
        for name, alignment in self._alignments.items():
            digest = alignment.digest()
            own[_VIRTUAL + name] = (FileIdentity(alignment.info.nbytes, digest), digest)
        return {**self.base.identity(), **own}

    def _filler(self, reader: RowsReader) -> Doubles:
        """Return the mean of all rows that are no fillers; found once, by who needs it first."""
        with self._lock:
            if reader.name not in self._fillers:
                self._fillers[reader.name] = reader.mean()
            return self._fillers[reader.name]
