"""A single model, as it is or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from streammerge.methods import merge_method
from streammerge.methods.parameters import PerModel

if TYPE_CHECKING:
    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat

Scale = Annotated[Sequence[float | None], PerModel(None)]


@merge_method("passthrough", models=(1, 1))
def passthrough(
    tensors: Sequence[Flat],
    out: Flat,
    workspace: Workspace,
    *,
    scale: Scale,
) -> bool:
    """Passthrough: the tensors of one model, multiplied by `scale`, correctly rounded.

    Args:
        tensors: a flat stretch of the one model; never written to.
        out: where the result goes.
        workspace: where temporaries come from.
        scale: a factor; none leaves the tensor as it is.
    """
    from streammerge.methods.averaging import weighted_sum

    factor = 1.0 if scale[0] is None else scale[0]
    return weighted_sum(tensors, out, workspace, (factor,), False)
