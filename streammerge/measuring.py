"""Measurements of whole tensors, before they are merged: who has been measured, and what came out.

The pipeline shows stretches of the tensors to `Measurements.observe`, on several threads, and ends
a round with `end_round`; until a tensor's measurement asks for no further round.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from streammerge.chunks import chunk_length, unit_length
from streammerge.errors import MergeError, printable
from streammerge.methods import METHODS
from streammerge.methods.measuring import Measurement
from streammerge.methods.running import Task
from streammerge.methods.workspace import Workspace
from streammerge.plan import OutputTensor, Plan
from streammerge.stretch import Stretch
from streammerge.windows import Piece

if TYPE_CHECKING:
    from torch import Tensor


class Measurements:
    """The measurements of a plan's tensors."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._by_name: dict[str, Measurement] = {}
        self._open: set[str] = set()
        self._lock = threading.Lock()

    def begin(self, tensors: Iterable[OutputTensor]) -> None:
        """Get ready to measure tensors."""
        for tensor in tensors:
            step = self._plan.steps[tensor.step]
            method, models = METHODS.get(step.method), len(step.sources) - step.has_base
            assert method.measure is not None
            made = method.measure(models, tensor.shape, dict(step.parameters))
            self._by_name[tensor.name] = made
            self._open.add(tensor.name)

    def task(self, tensor: OutputTensor) -> Task:
        """Return what is to be done to a tensor, with its measurement where it has one."""
        step = self._plan.steps[tensor.step]
        return Task(
            method=METHODS.get(step.method),
            parameters=dict(step.parameters),
            compute=step.compute,
            has_base=step.has_base,
            name=tensor.name,
            shape=tensor.shape,
            rows=step.granularity == "row",
            unit=unit_length(step, tensor.shape),
            chunk=chunk_length(step, tensor.shape),
            measured=self._by_name.get(tensor.name),
        )

    def observe(
        self, piece: Piece, inputs: Sequence[Stretch | Tensor], workspace: Workspace
    ) -> None:
        """Show a stretch to its tensor's measurement; all rounds at once if it is all of it."""
        task = self.task(piece.tensor)
        measurement = self._by_name[piece.tensor.name]
        whole = piece.read_numel == piece.tensor.info.numel
        while True:
            for part in task.observe(inputs, workspace, piece.read_first):
                with self._lock:
                    measurement.add(part)
            if not whole or not _ends_round(piece.tensor.name, measurement):
                break
        if whole:
            self._open.discard(piece.tensor.name)

    def end_round(self, tensors: Iterable[OutputTensor]) -> list[OutputTensor]:
        """Return those tensors that have to be shown once more."""
        shown = [tensor for tensor in tensors if tensor.name in self._open]
        again = [t for t in shown if _ends_round(t.name, self._by_name[t.name])]
        self._open = {tensor.name for tensor in again}
        return again

    def known(self, tensor: OutputTensor) -> bool:
        """Whether a tensor has been measured, or is being measured."""
        return tensor.name in self._by_name


def _ends_round(name: str, measurement: Measurement) -> bool:
    """End a round of a measurement; return whether there has to be another.

    Raises:
        MergeError: what the method finds wrong, with the name of the tensor.
    """
    with naming(name):
        return measurement.another_round()


@contextmanager
def naming(tensor: str) -> Iterator[None]:
    """Say in which tensor a method found what it refuses: it does not know names itself."""
    try:
        yield
    except MergeError as error:
        raise MergeError(f"{printable(tensor)}: {error.message}", error.remedy) from None
