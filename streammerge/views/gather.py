"""Rows gathered from several models, as one tensor: for any range of its bytes.

Each row is a row of some model, or zero, or a mean. Rows that lie near each other in a file are
read as one range, so a vocabulary that was only extended costs no more than a plain read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streammerge.formats import Checkpoint, as_read
from streammerge.storage import ALIGNMENT, IoMode, RangeReader
from streammerge.tensors import TensorInfo
from streammerge.views.arrays import Doubles, Floats, aligned_room, decode, numpy_name

Indices = NDArray[np.int32]
Bits = NDArray[np.unsignedinteger[Any]]

ZERO, MEAN, FILLER = -1, -2, -3
"""Instead of a model: zeros; the mean of all models that have the token; the mean of all rows."""
CHUNK = 512 * 1024
"""Bytes that are put together at once."""
SPARSE = 4
"""A range is read whole where at most this many times what is needed lies in it."""
_WORTHWHILE = 32 * 1024  # bytes in one piece, on average, for which direct reads pay


@dataclass(frozen=True)
class Alignment:
    """Where each row of a tensor comes from.

    Attributes:
        info: as it is handed out.
        models: for each row the index of a model in `sources`, or ZERO, MEAN or FILLER.
        rows: for each row the row there.
        holders: for each model its rows of the tokens, -1 where it lacks one; for MEAN.
        sources: all models.
    """

    info: TensorInfo
    models: Indices
    rows: Indices
    holders: Sequence[Indices]
    sources: Sequence[Checkpoint]

    @property
    def columns(self) -> int:
        """Elements of a row."""
        return self.info.numel // self.info.shape[0]

    @cached_property
    def scattered(self) -> bool:
        """Whether most rows that follow each other lie apart in the files."""
        steps = (np.diff(self.rows) != 1) | (np.diff(self.models) != 0)
        return int(np.count_nonzero(steps)) * _WORTHWHILE > self.info.nbytes

    def digest(self) -> str:
        """Return a sha256 that changes with anything that changes a byte."""
        digest = hashlib.sha256(repr(self.info).encode())
        for array in (self.models, self.rows, *self.holders):
            digest.update(np.ascontiguousarray(array, "<i4").tobytes())
        return digest.hexdigest()


class RowsReader:
    """An aligned tensor as a file; see `storage.RangeReader`.

    Args:
        name: of the tensor.
        alignment: where its rows come from.
        mode: how files are read.
        filler: returns the mean of all rows; asked only where there are fillers.
    """

    def __init__(
        self,
        name: str,
        alignment: Alignment,
        mode: IoMode,
        filler: Callable[[RowsReader], Doubles],
    ) -> None:
        self.name, self.mode = name, "computed"
        self._alignment, self._io, self._filler = alignment, mode, filler
        self._readers: dict[int, tuple[RangeReader, int]] = {}
        self._room = memoryview(b"")
        self._columns = alignment.columns
        self._row = self._columns * alignment.info.itemsize
        self._step = max(1, CHUNK // self._row)
        self._bits = f"<u{alignment.info.itemsize}"

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Put the bytes together at the start of the buffer, or hand out what lies in one piece."""
        first, last = offset // self._row, (offset + length - 1) // self._row
        models, rows = (a[first : last + 1] for a in (self._alignment.models, self._alignment.rows))
        model, row = int(models[0]), int(rows[0])
        if model >= 0 and self._info(model).dtype == self._alignment.info.dtype:
            ahead = np.arange(row, row + len(rows), dtype=rows.dtype)
            if (models == model).all() and np.array_equal(rows, ahead):
                reader, begin = self._reader(model)
                place = begin + row * self._row + offset - first * self._row
                return reader.fetch(place, length, buffer)
        out = np.frombuffer(buffer, np.uint8, length)
        for start in range(first, last + 1, self._step):
            block = self._block(start, min(start + self._step, last + 1))
            raw, begin = block.view(np.uint8).reshape(-1), start * self._row - offset
            low, high = max(begin, 0), min(begin + raw.size, length)
            out[low:high] = raw[low - begin : high - begin]
        return buffer[:length]

    def mean(self) -> Doubles:
        """Return the mean of all rows that are no fillers, in fp64."""
        total, count = np.zeros(self._columns), 0
        for start in range(0, len(self._alignment.models), self._step):
            chosen = self._alignment.models[start : start + self._step] != FILLER
            stop = start + len(chosen)
            if chosen.any():
                block = self._block(start, stop, fillers=False)
                total += self._floats(block, self._alignment.info.dtype)[chosen].sum(0, np.float64)
                count += int(chosen.sum())
        return total / count

    def _block(self, start: int, stop: int, fillers: bool = True) -> Bits:
        """Return some rows, as unsigned integers of the elements' size."""
        models, rows = (a[start:stop] for a in (self._alignment.models, self._alignment.rows))
        out = np.zeros((stop - start, self._columns), self._bits)
        for model in np.unique(models).tolist():
            where = np.flatnonzero(models == model)
            if model >= 0:
                out[where] = self._narrow(self._rows(model, rows[where]), self._info(model).dtype)
            elif model == MEAN:
                out[where] = self._rounded(self._means(start + where))
            elif model == FILLER and fillers:
                out[where] = self._rounded(self._filler(self))
        return out

    def _means(self, tokens: NDArray[np.intp]) -> Doubles:
        total = np.zeros((len(tokens), self._columns))
        count = np.zeros((len(tokens), 1))
        for model, holder in enumerate(self._alignment.holders):
            held = np.flatnonzero(holder[tokens] >= 0)
            if len(held):
                bits = self._rows(model, holder[tokens[held]])
                total[held] += self._floats(bits, self._info(model).dtype)
                count[held] += 1
        return total / count

    def _narrow(self, bits: Bits, dtype: str) -> Bits:
        """Return a model's rows in the dtype that is handed out, which holds them exactly."""
        if dtype == self._alignment.info.dtype:
            return bits
        return self._rounded(self._floats(bits, dtype))

    def _rounded(self, values: Floats) -> Bits:
        return values.astype(numpy_name(self._alignment.info.dtype)).view(self._bits)

    def _floats(self, bits: Bits, dtype: str) -> Floats:
        return decode(np.ascontiguousarray(bits).view(np.uint8).data, dtype).reshape(bits.shape)

    def _rows(self, model: int, rows: Indices) -> Bits:
        """Return rows of a model as they are stored."""
        low, high = int(rows.min()), int(rows.max())
        if high - low < SPARSE * len(rows):
            return self._read(model, [(low, high - low + 1)])[rows - low]
        breaks = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        starts = rows[breaks[:-1]].tolist()
        return self._read(model, list(zip(starts, np.diff(breaks).tolist(), strict=True)))

    def _read(self, model: int, runs: Sequence[tuple[int, int]]) -> Bits:
        """Return runs of rows, each a first row and a number of rows, one after the other."""
        (reader, begin), size = self._reader(model), self._info(model).itemsize
        row = self._columns * size
        out = np.empty((sum(count for _, count in runs), self._columns), f"<u{size}")
        room = max(count for _, count in runs) * row
        if len(self._room) < room + 2 * ALIGNMENT:
            self._room = aligned_room(room)
        target, done = out.view(np.uint8).reshape(-1).data, 0
        for first, count in runs:
            length = count * row
            target[done : done + length] = reader.fetch(begin + first * row, length, self._room)
            done += length
        return out

    def _info(self, model: int) -> TensorInfo:
        return as_read(self._alignment.sources[model], self.name)

    def _reader(self, model: int) -> tuple[RangeReader, int]:
        if model not in self._readers:
            source, mode = self._alignment.sources[model], self._io
            if mode == "auto" and self._alignment.scattered:
                mode = "mmap"  # the page cache reads around a row, and the next may lie there
            place = source.locate(self.name)
            self._readers[model] = (source.open(place.file, mode), place.offset)
        return self._readers[model]

    def close(self) -> None:
        """Close the files behind."""
        for reader, _ in self._readers.values():
            reader.close()
