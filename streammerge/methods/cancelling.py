"""Results that are small beside their inputs: found block by block, and computed again in fp64.

Sums in fp32 are off by some 2⁻²⁴ of their largest term. That is nothing to a 16-bit result, unless
the terms cancel and little is left of them, as in about 1 element in 10³ of unrelated models. Those
are so few that computing them again hardly costs anything; what must be cheap is to find them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streammerge.methods.finite import are_finite
from streammerge.methods.rounding import MANTISSA, indices
from streammerge.methods.workspace import Workspace
from streammerge.stretch import code_of

_MANY = 256 * 1024  # suspects that wait at most
_NO_SIGN = 0x7FFF
_LEFT = {torch.bfloat16: 11, torch.float16: 8}
"""Errors of 16 · 2⁻²⁴ of the largest input are within half a unit of the last place of a result
that is at most so many binary orders smaller."""


class SmallResults:
    """Finds the results of a stretch that are small beside their inputs.

    Args:
        inputs: the stretch in the models and the base model, of one 16-bit dtype and flat.
        out: its results, of that dtype, flat and as long.
        workspace: where temporaries come from.
        repeat: computes the results of these indices again.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        out: Tensor,
        workspace: Workspace,
        repeat: Callable[[Tensor], None],
    ) -> None:
        self._on_cpu = out.device.type == "cpu"
        self._xp: Any = np if self._on_cpu else torch
        self._inputs = [self._bits(tensor) for tensor in inputs]
        self._out, self._results = out, self._bits(out)
        self._workspace, self._repeat = workspace, repeat
        self._suspects = _Gathered(self._look_closer, _MANY)
        self._room = _LEFT[out.dtype] << MANTISSA[out.dtype]

    def _bits(self, tensor: Tensor) -> Any:
        return _as_array(tensor.view(torch.int16), self._on_cpu)

    def look(self, block: slice, largest: int) -> bool:
        """Look for small results in a block, and return whether all are finite.

        Few are small beside the largest input of the whole block; only those need a closer look.

        Args:
            block: where it lies in the stretch.
            largest: `largest_bits` of all inputs in it.
        """
        numel = block.stop - block.start
        magnitude = self._buffer("magnitude", torch.int16, numel)
        self._xp.bitwise_and(self._results[block], _NO_SIGN, out=magnitude)
        small = self._workspace.buffer("small", torch.bool, numel)
        self._xp.less(magnitude, largest - self._room, out=_as_array(small, self._on_cpu))
        self._suspects.add(indices(small), block.start)
        return are_finite(int(magnitude.max()), code_of(self._out))

    def _buffer(self, name: str, dtype: torch.dtype, numel: int) -> Any:
        return _as_array(self._workspace.buffer(name, dtype, numel), self._on_cpu)

    def settle(self) -> None:
        """Have those small results computed again that have not been yet."""
        self._suspects.settle()

    def _look_closer(self, found: Tensor) -> None:
        """Have the results computed again that are small beside an input of their own."""
        few = _as_array(found, self._on_cpu)
        limit = (self._results[few] & _NO_SIGN) + self._room
        beyond = self._xp.zeros_like(limit, dtype=self._xp.bool)
        for bits in self._inputs:
            beyond |= (bits[few] & _NO_SIGN) > limit
        again = found[torch.as_tensor(beyond)]
        if again.numel():
            self._repeat(again)


class _Gathered:
    """Indices found block by block and handed on together, since few cost as much as many.

    Args:
        handle: called with them.
        most: so many are not kept waiting.
    """

    def __init__(self, handle: Callable[[Tensor], None], most: int) -> None:
        self._handle, self._most = handle, most
        self._found: list[Tensor] = []
        self._waiting = 0

    def add(self, found: Tensor, start: int) -> None:
        """Keep the indices found in a block that begins at `start`."""
        if found.numel():
            self._found.append(found + start)
            self._waiting += found.numel()
            if self._waiting > self._most:
                self.settle()

    def settle(self) -> None:
        """Hand on what is still waiting."""
        if self._found:
            together = torch.cat(self._found)
            self._found, self._waiting = [], 0
            self._handle(together)


def _as_array(tensor: Tensor, on_cpu: bool) -> Any:
    """Return the memory as numpy's on a CPU, whose functions of integers are much faster."""
    return tensor.numpy() if on_cpu else tensor
