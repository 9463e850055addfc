"""W + s·L·R, computed for any range of bytes: L tall, R wide, both of low rank.

The sum is taken in fp64 and handed out as fp32 (fp64 where W is), so that the only rounding to the
model's dtype is the merge's. W is cut into a fixed grid of groups of rows, and each product has the
shape that the grid gives it: no bit depends on what is asked for, in which order or by whom.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streammerge.storage import ALIGNMENT, RangeReader, Storage, ends_early
from streammerge.tensors import DTYPES, TensorInfo
from streammerge.views.arrays import Doubles, Floats, aligned_room, decode, numpy_name

_CHUNK = 1024**2  # bytes of W that are read at once
_PRODUCT = 2**18  # multiplications up to which OpenBLAS stays on the calling thread
_ROWS, _MOST_ROWS, _RANK = 8, 256, 64  # of a product
_LIBRARY = 4 * 1024**2  # what the matrix product packs its operands into


@dataclass(frozen=True, slots=True)
class Matrix:
    """A factor in a file: `rows` × `columns`, stored in rows, or in columns where `transposed`."""

    storage: Storage
    file: str
    offset: int
    dtype: str
    rows: int
    columns: int
    transposed: bool

    def read(self, first: int, count: int) -> Doubles:
        """Return `count` rows from `first`."""
        result = np.empty((count, self.columns))
        if not self.transposed:
            result.reshape(-1)[:] = self._read(first * self.columns, result.size)
        elif count == self.rows:
            result[:] = self._read(0, result.size).reshape(self.columns, count).T
        else:
            for column in range(self.columns):
                result[:, column] = self._read(column * self.rows + first, count)
        return result

    def _read(self, first: int, numel: int) -> Floats:
        size = DTYPES[self.dtype].itemsize
        offset, length = self.offset + first * size, numel * size
        raw = self.storage.read(self.file, offset, length)
        if len(raw) < length:
            raise ends_early(f"{self.storage.label}/{self.file}", offset, length)
        return decode(raw, self.dtype)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A tensor that is changed: W as it is read, and the factors of what is added.

    Attributes:
        source: W, of any shape; its rows are those along the first axis.
        left: rows × rank.
        right: rank × columns.
        scaling: s.
    """

    source: TensorInfo
    left: Matrix
    right: Matrix
    scaling: float

    @property
    def dtype(self) -> str:
        """What is handed out."""
        return "F64" if self.source.dtype == "F64" else "F32"

    @property
    def group(self) -> int:
        """Rows of a group: more for a higher rank, as each group goes through all of R."""
        least = max(_ROWS, min(self.right.rows // 4, _RANK))
        return min(_MOST_ROWS, max(least, _PRODUCT // (self.depth * self.right.columns)))

    @property
    def depth(self) -> int:
        """Ranks of one product."""
        return min(self.right.rows, _RANK)

    @property
    def strip(self) -> int:
        """Columns of one product."""
        return min(self.right.columns, _PRODUCT // (self.depth * self.group))

    @property
    def scratch(self) -> int:
        """Bytes that a thread needs to compute it."""
        rank, columns = self.right.rows, self.right.columns
        row = columns * self.source.itemsize
        rows = self.group + _CHUNK // row  # that are read at once
        factors = 20 * rank * columns + 24 * rank * rows  # as stored, decoded, put together
        return factors + row * rows + 24 * columns * self.group + _LIBRARY


class Working(threading.local):
    """What a thread keeps between reads: room for W, and R of the tensor that it is in."""

    def __init__(self) -> None:
        self.room = memoryview(b"")
        self.total = np.empty((0, 0))
        self.right: tuple[LowRank, list[list[Doubles]]] | None = None


class LowRankReader:
    """A changed tensor as a file; see `storage.RangeReader`.

    Args:
        tensor: what to compute.
        reader, offset: where W lies.
        working: of the view; what a thread has there is shared by all its readers.
    """

    def __init__(self, tensor: LowRank, reader: RangeReader, offset: int, working: Working) -> None:
        self.mode = "computed"
        self._tensor, self._reader, self._offset, self._working = tensor, reader, offset, working
        self._row = tensor.right.columns * tensor.source.itemsize  # bytes of a row of W

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Compute the bytes at the start of the buffer; see `RangeReader`."""
        tensor, out = self._tensor, np.frombuffer(buffer, np.uint8, length)
        group = tensor.group
        size = group * tensor.right.columns * DTYPES[tensor.dtype].itemsize
        first, last = offset // size, (offset + length - 1) // size
        step = max(1, _CHUNK // (group * self._row))
        for start in range(first, last + 1, step):
            count = min(step, last + 1 - start)
            for number, values in self._groups(start, count):
                raw, begin = values.view(np.uint8).reshape(-1), number * size - offset
                low, high = max(begin, 0), min(begin + raw.size, length)
                out[low:high] = raw[low - begin : high - begin]
        return buffer[:length]

    def _groups(self, start: int, count: int) -> Iterator[tuple[int, Floats]]:
        """Yield some groups of rows and their numbers; W is read in one go."""
        tensor, group = self._tensor, self._tensor.group
        first = start * group
        rows = min(count * group, tensor.left.rows - first)
        raw = self._read(first * self._row, rows * self._row)
        # Rows past the last are zero: every product has the same shape, and no other kernel.
        left = np.zeros((count * group, tensor.left.columns))
        left[:rows] = tensor.left.read(first, rows)
        left *= tensor.scaling
        for index in range(count):
            part = slice(index * group, min((index + 1) * group, rows))
            wide = decode(raw[part.start * self._row : part.stop * self._row], tensor.source.dtype)
            yield start + index, self._add(left[index * group : (index + 1) * group], wide)

    def _add(self, left: Doubles, wide: Floats) -> Floats:
        shape = (len(left), self._tensor.right.columns)
        if self._working.total.shape != shape:
            self._working.total = np.empty(shape)
        total = self._working.total
        with np.errstate(all="ignore"):  # NaN and Inf are looked for in the merge
            self._multiply(left, total)
            result = total.reshape(-1)[: wide.size]
            result += wide
            return result.astype(numpy_name(self._tensor.dtype))

    def _multiply(self, left: Doubles, total: Doubles) -> None:
        """Write the product of some rows of L, and R, in pieces of a fixed shape."""
        strip, depth = self._tensor.strip, self._tensor.depth
        for index, pieces in enumerate(self._right()):
            part = total[:, index * strip : (index + 1) * strip]
            np.matmul(left[:, :depth], pieces[0], out=part)
            for number, piece in enumerate(pieces[1:], start=1):
                part += left[:, number * depth : (number + 1) * depth] @ piece

    def _right(self) -> list[list[Doubles]]:
        """Return R cut into strips of columns, and these into pieces, each contiguous."""
        kept = self._working.right
        if kept is None or kept[0] is not self._tensor:
            self._working.right = kept = None  # never two at a time
            tensor = self._tensor
            whole = tensor.right.read(0, tensor.right.rows)
            strips = [
                [
                    whole[first : first + tensor.depth, start : start + tensor.strip].copy()
                    for first in range(0, tensor.right.rows, tensor.depth)
                ]
                for start in range(0, tensor.right.columns, tensor.strip)
            ]
            self._working.right = kept = (tensor, strips)
        return kept[1]

    def _read(self, offset: int, length: int) -> memoryview:
        if len(self._working.room) < length + 2 * ALIGNMENT:
            self._working.room = aligned_room(length)
        return self._reader.fetch(self._offset + offset, length, self._working.room)

    def close(self) -> None:
        """Close the file behind."""
        self._reader.close()
