"""Where a block lies in its tensor, and random numbers that depend on nothing else.

The numbers come from Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a
generator that can begin anywhere: element i of a tensor gets the same number whatever the block
size, the number of threads and the device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_PER_STEP = 8  # 32-bit numbers for one step of Philox's counter


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
        """Return a random number in [0, 1) for each element of the block, in 2⁻²⁴ steps.

        Args:
            seed: of the recipe.
            stream: tells apart what must be independent, such as the models.
            like: gives dtype, shape and device.
        """
        import torch

        digest = hashlib.sha256(f"{seed}\0{stream}\0{self.name}".encode()).digest()
        step, skip = divmod(self.first, _PER_STEP)
        generator = np.random.Philox(
            key=int.from_bytes(digest[:16], "little"), counter=[step, 0, 0, 0]
        )
        raw = generator.random_raw((skip + self.numel + 1) // 2).astype("<u8", copy=False)
        bits = raw.view("<u4")[skip : skip + self.numel] >> np.uint32(8)
        numbers = torch.from_numpy(bits.astype(np.float32))
        return numbers.mul_(2.0**-24).to(like.device, like.dtype).view(like.shape)
