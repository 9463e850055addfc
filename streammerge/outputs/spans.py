"""Which tensors lie in a stretch of a shard file, for outputs that look into what they get."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from streammerge.plan import OutputShard, OutputTensor


class Spans:
    """Where the tensors of a shard begin and end in its file."""

    def __init__(self, shard: OutputShard) -> None:
        self._tensors = shard.tensors
        self._begins = []
        position = len(shard.header())
        for tensor in shard.tensors:
            self._begins.append(position)
            position += tensor.info.nbytes

    def within(self, offset: int, length: int) -> Iterator[tuple[OutputTensor, int, slice]]:
        """Yield each tensor that has bytes in a stretch of the file; the header is passed over.

        Args:
            offset: first byte of the stretch in the file.
            length: its bytes.

        Yields:
            the tensor, the first of those bytes counted from the tensor's own start, and where
            they lie in the stretch.
        """
        end = offset + length
        first = max(0, bisect_right(self._begins, offset) - 1)
        for index in range(first, bisect_right(self._begins, end - 1)):
            tensor, begin = self._tensors[index], self._begins[index]
            start, stop = max(begin, offset), min(begin + tensor.info.nbytes, end)
            if start < stop:
                yield tensor, start - begin, slice(start - offset, stop - offset)
