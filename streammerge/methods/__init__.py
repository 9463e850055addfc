"""tensors → tensor: the merge methods, and the decorator that makes a function one.

A method sees tensors only: no files, no names, no devices. It gets flat stretches of the inputs,
of any length, goes through them in blocks (`Workspace.blocks`) and writes its result into `out`. To
add one, write a function in a module here, decorate it, and import the module below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from streammerge.plugins import Registry

BLOCK_BYTES = 512 * 1024
"""Bytes of the running sum of a block on a CPU: it stays in the cache with what is added to it."""


class Workspace:
    """Buffers of one compute thread, allocated once.

    Args:
        device: where they lie.
        block_bytes: size of each buffer.
    """

    def __init__(self, device: torch.device, block_bytes: int = BLOCK_BYTES) -> None:
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
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self.numel(dtype), dtype=dtype, device=self.device)
        return self._buffers[key][:numel]


class Reduction(Protocol):
    """A method that takes the inputs one after the other."""

    def __call__(
        self,
        tensors: Sequence[Tensor],
        out: Tensor,
        workspace: Workspace,
        *,
        weights: Sequence[float],
        divisor: float,
        accumulator: torch.dtype,
        exact: bool,
    ) -> None:
        """Merge one stretch.

        Args:
            tensors: flat and of equal length, in any float dtype; never written to.
            out: flat, of that length.
            workspace: where temporaries come from.
            weights: one for each tensor.
            divisor: what the weighted sum is divided by.
            accumulator: dtype of the running sum.
            exact: every product of a weight and an element is exact in the accumulator.
        """


METHODS: Registry[Reduction] = Registry("merge method")
_F = TypeVar("_F", bound=Reduction)


def merge_method(name: str, aliases: tuple[str, ...] = ()) -> Callable[[_F], _F]:
    """Register a function as a merge method under a name."""

    def register(function: _F) -> _F:
        METHODS.add(name, function, aliases)
        return function

    return register


from streammerge.methods import averaging  # noqa: E402, F401  registers itself
