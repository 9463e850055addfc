"""Averages and weighted sums of the models themselves.

Model soups (arXiv:2203.05482), latest-weight averaging (arXiv:2306.03241).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from streammerge.methods import merge_method
from streammerge.methods.parameters import Weight
from streammerge.methods.weights import exact_weights

if TYPE_CHECKING:
    from streammerge.methods.workspace import Workspace
    from streammerge.stretch import Flat


@merge_method(
    "average",
    aliases=(
        "linear",
        "weighted_average",
        "simple_average",
        "model_soup",
        "linear/weighted_average",
        "linear/weighted_average_for_llama",
        "linear/simple_average_for_causallm",
        "linear/simple_average_for_llama",
        "linear/linear_interpolation",
    ),
    drops_zero=True,
    check=lambda parameters: exact_weights(parameters["weight"], parameters["normalize"]),
    paper="2203.05482",
)
def average(
    tensors: Sequence[Flat],
    out: Flat,
    workspace: Workspace,
    *,
    weight: Weight,
    normalize: bool = True,
) -> bool:
    """Average: Σ wᵢθᵢ / Σ wᵢ, correctly rounded.

    Decimal weights count as written: 0.7 and 0.3 are 7/10 and 3/10, not their nearest binary
    numbers.

    Args:
        tensors: flat stretches of the models, in any float dtype; never written to.
        out: where the average goes.
        workspace: where temporaries come from.
        weight: of each model, in any proportion.
        normalize: divide by the weights' sum; otherwise the weights are factors as they are.
    """
    from streammerge.methods.averaging import weighted_sum

    return weighted_sum(tensors, out, workspace, tuple(weight), normalize)
