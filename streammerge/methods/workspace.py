"""Where a compute thread's temporaries come from: buffers allocated once, of a cache's size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

BLOCK_BYTES = 1024**2
"""Bytes of the running sum of a block on a CPU: it stays in the cache with what is added to it, and
a call on it takes long enough for other threads to be woken (`chunks.chunk_length`)."""


class Workspace:
    """Buffers of one compute thread, allocated once.

    Args:
        device: where they lie; None for the CPU.
        block_bytes: size of each buffer.
    """

    def __init__(
        self,
        device: torch.device | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.device = device
        self.block_bytes = block_bytes
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def numel(self, dtype: torch.dtype) -> int:
        """Return how many elements of this dtype a block has."""
        return self.block_bytes // dtype.itemsize

    def blocks(self, numel: int, dtype: torch.dtype) -> Iterator[slice]:
        """Yield the slices of blocks of this dtype that make up `numel` elements."""
        step = self.numel(dtype)
        for start in range(0, numel, step):
            yield slice(start, min(start + step, numel))

    def buffer(self, name: str, dtype: torch.dtype, numel: int) -> Tensor:
        """Return the first `numel` elements of the buffer of that name; contents are undefined."""
        key = (name, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < numel:
            import torch

            room = max(numel, self.numel(dtype))  # a row can be longer than a block
            buffer = self._buffers[key] = torch.empty(room, dtype=dtype, device=self.device)
        return buffer if buffer.numel() == numel else buffer[:numel]
