"""Elements of a tensor where they lie in memory, for those who work on bytes and need no torch.

Loading torch takes longer than merging a small model, so what the compiled loops do is done on
stretches, and only what needs torch makes tensors of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streammerge.tensors import DTYPES, FLOAT_CODES, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor


class Stretch:
    """Flat elements of one dtype.

    Args:
        bits: the elements as integers of their size; shared, not copied.
        dtype: safetensors code.
    """

    __slots__ = ("bits", "dtype")

    def __init__(self, bits: NDArray[np.signedinteger[Any]], dtype: str) -> None:
        self.bits, self.dtype = bits, dtype

    @classmethod
    def of_buffer(cls, buffer: memoryview, start: int, dtype: str, numel: int) -> Stretch:
        """Return the elements from byte `start` of a buffer, without a copy."""
        return cls(np.frombuffer(buffer, f"i{DTYPES[dtype].itemsize}", numel, start), dtype)

    @classmethod
    def of_tensor(cls, tensor: Tensor) -> Stretch:
        """Return the elements of a flat tensor on the CPU, without a copy."""
        import torch

        integer = getattr(torch, f"int{8 * tensor.dtype.itemsize}")
        return cls(tensor.detach().view(integer).numpy(), code_of(tensor))

    def numel(self) -> int:
        """Return the number of elements."""
        return self.bits.size

    def __getitem__(self, block: slice) -> Stretch:
        return Stretch(self.bits[block], self.dtype)

    def compact(self) -> Stretch:
        """Return the elements side by side: these, or a copy."""
        return Stretch(np.ascontiguousarray(self.bits), self.dtype)

    def tensor(self) -> Tensor:
        """Return the elements as a tensor, without a copy."""
        import torch

        return torch.from_numpy(self.bits).view(torch_dtype(self.dtype))


if TYPE_CHECKING:
    Flat = Stretch | Tensor  # on the CPU, for compiled loops; or wherever torch has them


def as_tensor(flat: Flat) -> Tensor:
    """Return elements as a tensor, without a copy."""
    return flat.tensor() if isinstance(flat, Stretch) else flat


def code_of(flat: Flat) -> str:
    """Return the safetensors code of a float dtype."""
    if isinstance(flat, Stretch):
        return flat.dtype
    return FLOAT_CODES[str(flat.dtype).removeprefix("torch.")]
