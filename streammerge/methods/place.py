"""Where a block lies in its tensor, and random numbers that depend on nothing else.

The numbers come from PCG64DXSM (O'Neill, "PCG: a family of simple fast space-efficient
statistically good algorithms", 2014), which numpy has and which can begin anywhere: an element of a
tensor gets the same number whatever the block size, the number of threads and the device.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_PER_STEP = 4  # 16-bit numbers for one step of the generator
_STEPS = 2**16
"""Resolution of a probability: an element is chosen with the nearest multiple of 2⁻¹⁶."""


@dataclass(frozen=True, slots=True)
class Place:
    """A block of a tensor.

    Attributes:
        name: of the tensor; for the random numbers alone.
        shape: of the whole tensor.
        first: number of the block's first element.
        numel: its number of elements.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    numel: int

    def uniform(self, seed: int, stream: int, like: Tensor) -> Tensor:
        """Return a random number in (0, 1) for each element of the block: (k + ½) / 2¹⁶.

        Args:
            seed: of the recipe.
            stream: tells apart what must be independent, such as the models.
            like: gives dtype, shape and device.
        """
        import torch

        numbers = torch.from_numpy(self._bits(seed, stream).astype(np.float32))
        numbers.add_(0.5).mul_(1 / _STEPS)
        return numbers.to(like.device, like.dtype).view(like.shape)

    def chosen(self, seed: int, stream: int, probability: float, like: Tensor) -> Tensor:
        """Return 1 for each element that is chosen at random, and 0 for the others.

        The same as `uniform(…) < probability`, and faster.

        Args:
            probability: in (0, 1); the nearest multiple of 2⁻¹⁶ counts.
            seed, stream, like: as for `uniform`.
        """
        import torch

        chosen = self._bits(seed, stream) < chance(probability)
        numbers = torch.from_numpy(chosen.astype(np.float32))
        return numbers.to(like.device, like.dtype).view(like.shape)

    def generator(self, seed: int, stream: int) -> tuple[int, int]:
        """Return state and increment of the generator, before the tensor's first element."""
        digest = hashlib.sha256(f"{seed}\0{stream}\0{self.name}".encode()).digest()
        return int.from_bytes(digest[:16], "little"), int.from_bytes(digest[16:], "little") | 1

    def part(self, block: slice) -> Place:
        """Return where a block of this block lies."""
        return Place(self.name, self.shape, self.first + block.start, block.stop - block.start)

    def _bits(self, seed: int, stream: int) -> NDArray[np.uint16]:
        step, skip = divmod(self.first, _PER_STEP)
        state, increment = self.generator(seed, stream)
        generator = _generator()
        generator.state = {
            "bit_generator": "PCG64DXSM",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        generator.advance(step)
        raw = generator.random_raw(-(-(skip + self.numel) // _PER_STEP))
        return raw.astype("<u8", copy=False).view("<u2")[skip : skip + self.numel]


def chance(probability: float) -> int:
    """Return how many of the 2¹⁶ numbers are below a probability."""
    return math.ceil(probability * _STEPS - 0.5)


_of_thread = threading.local()


def _generator() -> np.random.PCG64DXSM:
    """Return this thread's generator: to make one takes as long as 60,000 numbers."""
    if not hasattr(_of_thread, "generator"):
        _of_thread.generator = np.random.PCG64DXSM(0)
    generator: np.random.PCG64DXSM = _of_thread.generator
    return generator
