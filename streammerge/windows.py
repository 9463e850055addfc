"""The output cut into windows, and for each window the byte ranges of the inputs it needs.

A window is an aligned stretch of an output file, header included. So writes are aligned without
padding the file, memory depends on the window and not on tensors or shards, and tensors that lie
side by side in an input are read as one range.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from streammerge.checkpoint import Checkpoint, as_read
from streammerge.chunks import chunk_length, unit_length
from streammerge.plan import OutputShard, OutputTensor, Plan, Step
from streammerge.storage import ALIGNMENT, is_large
from streammerge.tensors import DTYPES


@dataclass(slots=True)
class Range:
    """Bytes to read from one file of one input."""

    file: str
    offset: int
    length: int


@dataclass(slots=True)
class Source:
    """Where the elements of a piece lie in what was read: byte `start` of range number `read`."""

    model: int
    dtype: str
    read: int
    start: int


@dataclass(slots=True)
class Piece:
    """The part of one tensor that lies in a window.

    Attributes:
        tensor: the output tensor.
        step: what is done to it.
        first: its first element in the tensor.
        numel: number of elements, at least 1.
        start: first byte in the window.
        read_first: first element that is read: whole rows, where the method needs them.
        read_numel: number of elements that are read; 0 where the tensor is read as a whole.
        sources: one for each source of the step.
    """

    tensor: OutputTensor
    step: Step
    first: int
    numel: int
    start: int
    read_first: int
    read_numel: int
    sources: list[Source] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the piece in the output."""
        return self.numel * DTYPES[self.tensor.dtype].itemsize


@dataclass(slots=True)
class Window:
    """An aligned stretch of an output file; or, to be measured, stretches of some tensors.

    Attributes:
        row: which of the rows of shards that grow side by side it belongs to.
        shard: index of the output shard.
        start: first byte in the file, a multiple of `ALIGNMENT`.
        length: bytes; only the last window of a file is not a multiple of `ALIGNMENT`.
        header: bytes of the file's header that lie in the window, at its start.
        pieces: tensors in the order of their bytes.
        reads: for each input, the ranges to read, in the order of the pieces.
        measuring: nothing is written: the pieces are to be measured.
    """

    row: int
    shard: int
    start: int
    length: int
    header: bytes
    pieces: list[Piece]
    reads: list[list[Range]]
    measuring: bool = False

    @property
    def bytes_read(self) -> int:
        """Bytes to read from all inputs."""
        return sum(wanted.length for ranges in self.reads for wanted in ranges)


def room_for(length: int) -> int:
    """Return how many bytes of a slot a read of this length takes (see `RangeReader.fetch`)."""
    return length + 3 * ALIGNMENT if is_large(length) else length + 8


def cut_windows(
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    size: int,
    without: Collection[str] = (),
    abreast: int = 1,
) -> Iterator[Window]:
    """Yield the windows of all shards, those of each in order.

    Args:
        plan: what to do.
        checkpoints: the opened inputs of the plan.
        size: bytes of a window; a multiple of `ALIGNMENT`.
        without: names of shards to pass over.
        abreast: shards that grow at the same time, each in a row of its own: the digest of one is
            the work of one thread.
    """
    shards = iter([(i, s) for i, s in enumerate(plan.shards) if s.file not in without])

    def cut_row(row: int) -> Iterator[Window]:
        for index, shard in shards:  # of all rows together: who is done takes the next
            for window in _cut_shard(plan, index, shard, checkpoints, size):
                window.row = row
                yield window

    rows = deque(cut_row(row) for row in range(abreast))
    while rows:
        window = next(rows[0], None)
        if window is None:
            rows.popleft()
        else:
            yield window
            rows.rotate(-1)


def _cut_shard(
    plan: Plan, index: int, shard: OutputShard, checkpoints: Sequence[Checkpoint], size: int
) -> Iterator[Window]:
    header = shard.header()
    spans = _spans(shard, len(header))
    end_of_file = spans[-1][1] if spans else len(header)
    current = 0  # the first tensor that is not wholly behind
    for start in range(0, end_of_file, size):
        end = min(start + size, end_of_file)
        window = Window(
            0, index, start, end - start, header[start:end], [], [[] for _ in checkpoints]
        )
        position = current
        while position < len(spans) and spans[position][0] < end:
            begin, stop, tensor = spans[position]
            if stop <= end:
                current = position + 1
            if max(begin, start) < min(stop, end):
                piece = _piece(plan, tensor, begin, max(begin, start), min(stop, end), start)
                _plan_reads(piece, window.reads, checkpoints)
                window.pieces.append(piece)
            position += 1
        yield window


def _spans(shard: OutputShard, position: int) -> list[tuple[int, int, OutputTensor]]:
    spans = []
    for tensor in shard.tensors:
        end = position + tensor.info.nbytes
        spans.append((position, end, tensor))
        position = end
    return spans


def cut_stretches(
    plan: Plan, checkpoints: Sequence[Checkpoint], tensors: Sequence[OutputTensor], size: int
) -> Iterator[Window]:
    """Yield windows of whole chunks of tensors that are to be measured.

    Args:
        plan, checkpoints: as for `cut_windows`.
        tensors: what is measured.
        size: bytes of the output that a window stands for; a longer row has a window of its own.
    """

    def empty() -> Window:
        return Window(0, 0, 0, 0, b"", [], [[] for _ in checkpoints], measuring=True)

    window = empty()
    for tensor in tensors:
        step, itemsize = plan.steps[tensor.step], tensor.info.itemsize
        chunk = chunk_length(step, tensor.shape)
        longest = max(1, size // (chunk * itemsize)) * chunk
        first = 0
        while first < tensor.info.numel:
            room = (size - window.length) // (chunk * itemsize) * chunk
            if window.pieces and room < min(chunk, tensor.info.numel - first):
                yield window
                window, room = empty(), longest
            numel = min(room or longest, tensor.info.numel - first)
            piece = Piece(tensor, step, first, numel, 0, first, numel)
            _plan_reads(piece, window.reads, checkpoints)
            window.pieces.append(piece)
            window.length += numel * itemsize
            first += numel
    if window.pieces:
        yield window


def _piece(
    plan: Plan, tensor: OutputTensor, begin: int, start: int, end: int, window_start: int
) -> Piece:
    # Elements are never split: tensors are laid out by falling element size behind a header of a
    # multiple of 8 bytes, and windows begin at multiples of ALIGNMENT.
    itemsize, step = DTYPES[tensor.dtype].itemsize, plan.steps[tensor.step]
    first, after = (start - begin) // itemsize, (end - begin) // itemsize
    unit = unit_length(step, tensor.shape)
    read_first = first // unit * unit
    read_after = -(-after // unit) * unit if step.granularity != "tensor" else read_first
    return Piece(
        tensor,
        step,
        first,
        after - first,
        start - window_start,
        read_first,
        read_after - read_first,
    )


def _plan_reads(piece: Piece, reads: list[list[Range]], checkpoints: Sequence[Checkpoint]) -> None:
    """Add what a piece needs to the reads of its sources, extending a range where it touches."""
    if not piece.read_numel:
        return
    for model in piece.step.sources:
        checkpoint, ranges = checkpoints[model], reads[model]
        dtype = as_read(checkpoint, piece.tensor.name).dtype
        itemsize = DTYPES[dtype].itemsize
        location = checkpoint.locate(piece.tensor.name)
        offset = location.offset + piece.read_first * itemsize
        length = piece.read_numel * itemsize
        last = ranges[-1] if ranges else None
        if last is not None and last.file == location.file and last.offset + last.length == offset:
            piece.sources.append(Source(model, dtype, len(ranges) - 1, last.length))
            last.length += length
        else:
            piece.sources.append(Source(model, dtype, len(ranges), 0))
            ranges.append(Range(location.file, offset, length))
