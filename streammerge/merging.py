"""One piece of a window: its tensor's step applied to its bytes, and the result looked over."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from streammerge.equality import require_equal
from streammerge.errors import NonFiniteError, printable
from streammerge.lanes import Lane
from streammerge.measuring import Measurements
from streammerge.methods.finite import all_finite, count_nonfinite
from streammerge.methods.running import Task
from streammerge.methods.workspace import Workspace
from streammerge.plan import OutputShard, Plan
from streammerge.stretch import Stretch
from streammerge.wholes import Wholes
from streammerge.windows import Piece


class Merger:
    """Carries out steps; shared by all compute threads.

    Args:
        plan: names the models in messages.
        wholes: merges tensors whose method needs them whole.
        allow_nonfinite: count NaN and Inf instead of refusing them.

    Attributes:
        measurements: what is known of whole tensors.
    """

    def __init__(self, plan: Plan, wholes: Wholes, allow_nonfinite: bool) -> None:
        self.measurements = Measurements(plan)
        self._wholes = wholes
        self._labels = [model.label for model in plan.inputs]
        self._allow_nonfinite = allow_nonfinite
        self._lock = threading.Lock()
        self._written: Counter[str] = Counter()
        self._read: Counter[tuple[str, str]] = Counter()

    def merge(
        self, piece: Piece, views: Sequence[Sequence[memoryview]], output: memoryview, lane: Lane
    ) -> None:
        """Write a piece to its place in the output buffer.

        Args:
            piece: what to do.
            views: for each model, the ranges that were read for the window.
            output: the window.
            lane: where to compute.

        Raises:
            TensorsDifferError: integers that should be equal are not.
            NonFiniteError: NaN or Inf in an input or in the result, unless allowed.
        """
        out = Stretch.of_buffer(output, piece.start, piece.tensor.dtype, piece.numel)
        inputs = _inputs(piece, views)
        if piece.step.action == "merge":
            self._merge(piece, inputs, out, lane)
            return
        if piece.step.action == "equal":
            labels = [self._labels[model] for model in piece.step.sources]
            require_equal(piece.tensor, inputs, labels)
        np.copyto(out.bits, inputs[0].bits)

    def nonfinite(self, shard: OutputShard) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Return the NaN and infinite elements of a merged shard by tensor, and of its inputs."""
        names = {tensor.name for tensor in shard.tensors}
        read: Counter[str] = Counter()
        with self._lock:
            for (name, label), count in self._read.items():
                read[label] += count if name in names else 0
            return {n: c for n, c in self._written.items() if n in names}, dict(+read)

    def measure(
        self, piece: Piece, views: Sequence[Sequence[memoryview]], workspace: Workspace
    ) -> None:
        """Show a piece to its tensor's measurement.

        What is not finite is refused when it is merged: measurements let it pass.
        """
        self.measurements.observe(piece, _inputs(piece, views), workspace)

    def _merge(self, piece: Piece, inputs: Sequence[Stretch], out: Stretch, lane: Lane) -> None:
        if piece.step.passes and not self.measurements.known(piece.tensor):
            # The whole tensor lies in this window, so it need not be read a second time.
            self.measurements.begin([piece.tensor])
            self.measurements.observe(piece, inputs, lane.on_cpu)
        task = self.measurements.task(piece.tensor)
        if piece.step.granularity == "tensor":
            self._take_from_whole(piece, task, out)
            return
        if piece.step.granularity == "row":
            # Devices have sines and sums of rows of their own: the bits are to be those of a CPU.
            finite = task(inputs, out, lane.on_cpu, piece.read_first, piece.first)
        else:
            finite = lane.run(task, inputs, out, piece.read_first, piece.first)
        if not finite:
            self._examine(piece, task, inputs, out, lane.on_cpu)

    def _take_from_whole(self, piece: Piece, task: Task, out: Stretch) -> None:
        def look_over(model: int, first: int, stretch: Stretch) -> None:
            if not all_finite(stretch):
                self._refuse_nonfinite(piece, stretch, model, first)
                self._count_nonfinite_input(piece, stretch, model)

        out.tensor().copy_(self._wholes.take(piece, task, look_over))
        if not all_finite(out):
            self._count_nonfinite(piece, out)

    def _examine(
        self,
        piece: Piece,
        task: Task,
        inputs: Sequence[Stretch],
        out: Stretch,
        workspace: Workspace,
    ) -> None:
        """Say where what is not finite came from; merge a piece again if its method is no kernel.

        A step in fp32 can leave its range though the result does not, so these elements are taken
        from a merge in fp64 before anything is called an overflow. The others keep their bits: what
        else lies in the piece depends on the window.
        """
        self._refuse_nonfinite_inputs(piece, inputs)
        skipped = piece.first - piece.read_first
        own = slice(skipped, skipped + piece.numel)
        for stretch, model in zip(inputs, piece.step.sources, strict=True):
            self._count_nonfinite_input(piece, stretch[own], model)
        if all_finite(out):
            return
        if not task.method.kernel:
            again, merged = out.tensor().clone(), out.tensor()
            task.widened()(inputs, again, workspace, piece.read_first, piece.first)
            bad = ~merged.isfinite()
            merged[bad] = again[bad]
        self._count_nonfinite(piece, out)

    def _count_nonfinite(self, piece: Piece, out: Stretch) -> None:
        count = count_nonfinite(out)
        if count == 0:
            return
        if not self._allow_nonfinite:
            raise NonFiniteError(
                f"the merge of {printable(piece.tensor.name)} leaves the range of "
                f"{piece.tensor.dtype}: {count} elements become infinite",
                "Choose a wider --dtype such as bfloat16, or let them pass with --allow-nonfinite.",
            )
        with self._lock:
            self._written[piece.tensor.name] += count

    def _count_nonfinite_input(self, piece: Piece, stretch: Stretch, model: int) -> None:
        with self._lock:
            self._read[piece.tensor.name, self._labels[model]] += count_nonfinite(stretch)

    def _refuse_nonfinite_inputs(self, piece: Piece, inputs: Sequence[Stretch]) -> None:
        for stretch, model in zip(inputs, piece.step.sources, strict=True):
            self._refuse_nonfinite(piece, stretch, model, piece.first)

    def _refuse_nonfinite(self, piece: Piece, stretch: Stretch, model: int, first: int) -> None:
        bad = 0 if self._allow_nonfinite else count_nonfinite(stretch)
        if bad:
            raise NonFiniteError(
                f"{printable(piece.tensor.name)} in {self._labels[model]} holds NaN or "
                f"Inf ({bad} elements near number {first:,})",
                "A diverged training run leaves such values: check that model; or pass them on "
                "with --allow-nonfinite.",
            )


def _inputs(piece: Piece, views: Sequence[Sequence[memoryview]]) -> list[Stretch]:
    return [
        Stretch.of_buffer(views[s.model][s.read], s.start, s.dtype, piece.read_numel)
        for s in piece.sources
    ]
