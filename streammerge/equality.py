"""Integer and bool tensors have no average: they are equal in all models, or refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streammerge.errors import TensorsDifferError, printable
from streammerge.plan import OutputTensor
from streammerge.stretch import Stretch


def require_equal(tensor: OutputTensor, inputs: Sequence[Stretch], labels: Sequence[str]) -> None:
    """Compare a stretch of a tensor between models, bit by bit.

    Args:
        tensor: for the message.
        inputs: the stretch in each model.
        labels: of the models.

    Raises:
        TensorsDifferError: they are not equal.
    """
    for other, label in zip(inputs[1:], labels[1:], strict=True):
        if not np.array_equal(inputs[0].bits, other.bits):
            raise TensorsDifferError(
                f"the {tensor.dtype} tensor {printable(tensor.name)} differs between "
                f"{labels[0]} and {label}: integers have no average",
                f"Take it from the first model with --keep '{tensor.name}', or leave it out with "
                f"--skip '{tensor.name}'.",
            )
