"""A tensor seen as the bytes of its elements: what the pipeline reads from and writes to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class TensorBytes:
    """The elements of a tensor in row-major order; a `RangeReader` and an `outputs.memory.Target`.

    The memory of a contiguous tensor on the CPU is read and written in place. Any other layout or
    device is copied piece by piece, so that the tensor is never held a second time.

    Args:
        tensor: dense, of any float, integer, bool or complex dtype; its gradient is not touched.
    """

    mode = "memory"

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        self.nbytes = tensor.numel() * tensor.element_size()
        self._memory: memoryview | None = None
        lazy = tensor.is_conj() or tensor.is_neg()  # bits that stand for an operation to come
        if tensor.device.type == "cpu" and tensor.is_contiguous() and not lazy:
            self._memory = self._tensor.reshape(-1).view(torch.uint8).numpy().data

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Return bytes of whole elements: the tensor's own memory, or copied into the buffer."""
        if self._memory is not None:
            return self._memory[offset : offset + length]
        for part, flat in self._parts(offset, buffer[:length]):
            flat.view(part.shape).copy_(part)
        return buffer[:length]

    def store(self, offset: int, data: memoryview) -> None:
        """Write bytes of whole elements from `offset` on."""
        if self._memory is not None:
            # By numpy: one thread is enough, and torch would start several.
            own = np.frombuffer(self._memory, np.uint8, len(data), offset)
            own[:] = np.frombuffer(data, np.uint8)
            return
        for part, flat in self._parts(offset, data):
            part.copy_(flat.view(part.shape))

    def _parts(self, offset: int, data: memoryview) -> Iterator[tuple[Tensor, Tensor]]:
        flat = torch.frombuffer(data, dtype=self._tensor.dtype)
        first = offset // self._tensor.element_size()
        for part, place in row_major(self._tensor, first, flat.numel()):
            yield part, flat[place]

    def close(self) -> None:
        """Do nothing: the tensor belongs to somebody else."""


def row_major(tensor: Tensor, first: int, numel: int) -> Iterator[tuple[Tensor, slice]]:
    """Yield views that together are a stretch of a tensor's elements in row-major order.

    Args:
        tensor: of any shape and strides.
        first: the first element of the stretch.
        numel: its number of elements.

    Yields:
        each view, and where its elements lie in the stretch.
    """
    if tensor.dim() == 0:
        yield tensor, slice(0, numel)
        return
    row = tensor[0].numel()
    done = 0
    while done < numel:
        index, inside = divmod(first + done, row)
        left = numel - done
        if inside == 0 and left >= row:  # whole rows at once
            rows = left // row
            yield tensor[index : index + rows], slice(done, done + rows * row)
            done += rows * row
            continue
        taken = min(row - inside, left)
        for part, place in row_major(tensor[index], inside, taken):
            yield part, slice(done + place.start, done + place.stop)
        done += taken
