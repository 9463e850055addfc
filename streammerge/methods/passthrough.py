"""A single model, as it is or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from streammerge.methods import merge_method
from streammerge.methods.parameters import PerModel

if TYPE_CHECKING:
    from torch import Tensor

Scale = Annotated[Sequence[float | None], PerModel(None)]


@merge_method("passthrough", models=(1, 1))
def passthrough(tensors: Sequence[Tensor], *, scale: Scale) -> Tensor:
    """Passthrough: the tensors of one model, multiplied by `scale`.

    Args:
        tensors: a block of the one model.
        scale: a factor; none leaves the tensor as it is.
    """
    (tensor,) = tensors
    return tensor if scale[0] is None else tensor.mul_(scale[0])
