"""A merge as the input of another: its tensors are merged while they are read, and never written.

What is handed out is not rounded to the inner merge's dtype but fp32 (fp64 where it computes in
that), so that a chain of merges rounds once, at its end.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streammerge.buffers import allocate
from streammerge.checkpoint import Checkpoint, as_read
from streammerge.chunks import unit_length
from streammerge.equality import require_equal
from streammerge.formats.safetensors import Location
from streammerge.measuring import Measurements
from streammerge.methods.workspace import Workspace
from streammerge.needs import measurements, rows, whole_tensors
from streammerge.openfiles import OpenFiles
from streammerge.plan import OutputTensor, Plan, Step
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader
from streammerge.stretch import Stretch
from streammerge.tensors import DTYPES, torch_dtype
from streammerge.windows import Piece, room_for

if TYPE_CHECKING:
    from torch import Tensor

_STRETCH = 1024**2  # elements that are merged at a time
_FILE = "merged"  # the virtual file that all tensors lie in
_GAP = 4096  # bytes between two of them, so that no read goes over both


class MergedCheckpoint:
    """The merge of a plan as a checkpoint; see `formats.Checkpoint`.

    Args:
        label: names it in messages.
        plan: what is done.
        checkpoints: its opened inputs.
    """

    def __init__(self, label: str, plan: Plan, checkpoints: Sequence[Checkpoint]) -> None:
        self.label, self.plan, self.checkpoints = label, plan, checkpoints
        self.notes = [f"{label}: {note}" for note in plan.notes]
        self.outputs = {tensor.name: tensor for tensor in plan.tensors}
        self.tensors = {name: tensor.info for name, tensor in self.outputs.items()}
        self.measurements = Measurements(plan)
        self.pinned = ""
        self.lock = threading.Lock()
        self.starts: list[int] = []  # of the tensors in the virtual file
        self._locations: dict[str, Location] = {}
        end = 0
        for name, tensor in self.outputs.items():
            code = _code(plan, tensor)
            self.starts.append(end)
            self._locations[name] = Location(_FILE, end, "" if code == tensor.dtype else code)
            end += tensor.info.numel * DTYPES[code].itemsize + _GAP
        self._donor = checkpoints[plan.side_files_from]

    @property
    def scratch(self) -> int:
        """Room for a stretch of every source, and what reading and merging those needs."""
        sources = max((len(step.sources) for step in self.plan.steps), default=0)
        stretch = 8 * (2 * sources + 2) * _STRETCH + rows(self.plan) * sources
        whole = whole_tensors(self.plan)
        merged = whole.working + 8 * whole.tensor.info.numel if whole else 0
        inner = sum(checkpoint.scratch for checkpoint in self.checkpoints)
        return stretch + measurements(self.plan) + merged + inner

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the model whose side files the inner merge takes."""
        return self._donor.config

    def locate(self, name: str) -> Location:
        """Return the tensor's place in the virtual file."""
        return self._locations[name]

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Return what merges tensors as they are read."""
        return MergedReader(self, mode)

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return one entry, which changes with anything that changes the inner merge."""
        fingerprint = self.plan.fingerprint()
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()
        return {"merge": (FileIdentity(self.plan.nbytes, fingerprint), digest)}

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what the inner inputs need."""
        wanted = [self.outputs[name] for name in names]
        sources = [(t.name, model) for t in wanted for model in self.plan.steps[t.step].sources]
        return [
            download
            for index, checkpoint in enumerate(self.checkpoints)
            for download in checkpoint.downloads([n for n, model in sources if model == index])
        ]

    def side_files(self) -> Mapping[str, FileIdentity]:
        """Return those of the model that the inner merge takes them from."""
        return self._donor.side_files()

    def card(self) -> str:
        """Return that model's card."""
        return self._donor.card()

    def read_side_file(self, path: str) -> bytes:
        """Return the content of a side file."""
        return self._donor.read_side_file(path)


def _code(plan: Plan, tensor: OutputTensor) -> str:
    """Return the code of the dtype in which a tensor is handed out."""
    step = plan.steps[tensor.step]
    return step.compute if step.action == "merge" else tensor.dtype


class MergedReader:
    """The virtual file of an inner merge, read by one thread; see `storage.RangeReader`."""

    def __init__(self, checkpoint: MergedCheckpoint, mode: IoMode) -> None:
        self.mode = "merged"
        self._checkpoint, self._tensors = checkpoint, list(checkpoint.outputs.values())
        self._labels = [model.label for model in checkpoint.plan.inputs]
        self._files = OpenFiles(checkpoint.checkpoints, mode, {}, 1)
        self._rooms = [allocate(0) for _ in checkpoint.checkpoints]
        self._workspace = Workspace()
        self._whole: tuple[str, Tensor] | None = None  # the last tensor that was merged whole

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Merge the elements that lie there into the buffer."""
        starts, plan = self._checkpoint.starts, self._checkpoint.plan
        number = bisect_right(starts, offset) - 1
        tensor = self._tensors[number]
        step, code = plan.steps[tensor.step], _code(plan, tensor)
        itemsize = DTYPES[code].itemsize
        first = (offset - starts[number]) // itemsize
        view = buffer[:length]
        out = Stretch.of_buffer(view, 0, code, length // itemsize)
        if step.action == "merge":
            self._measure(tensor, step)
        if step.granularity == "tensor":
            out.tensor().copy_(self._merged_whole(tensor, step)[first : first + out.numel()])
            return view
        for start in range(0, out.numel(), _STRETCH):
            self._fill(tensor, step, out[start : start + _STRETCH], first + start)
        return view

    def _fill(self, tensor: OutputTensor, step: Step, out: Stretch, first: int) -> None:
        unit = unit_length(step, tensor.shape)
        start = first // unit * unit
        stop = min(-(-(first + out.numel()) // unit) * unit, tensor.info.numel)
        inputs = self._read(tensor, step, start, stop - start)
        if step.action == "merge":
            task = self._checkpoint.measurements.task(tensor)
            task(inputs, out, self._workspace, start, first)
            return
        if step.action == "equal":
            require_equal(tensor, inputs, [self._labels[model] for model in step.sources])
        np.copyto(out.bits, inputs[0].bits)

    def _merged_whole(self, tensor: OutputTensor, step: Step) -> Tensor:
        import torch

        if self._whole is None or self._whole[0] != tensor.name:
            self._whole = None  # the memory of one of them is there
            numel, dtype = tensor.info.numel, torch_dtype(step.compute)
            copies = [torch.empty(numel, dtype=dtype) for _ in step.sources]
            for start in range(0, numel, _STRETCH):
                count = min(_STRETCH, numel - start)
                for copy, stretch in zip(
                    copies, self._read(tensor, step, start, count), strict=True
                ):
                    copy[start : start + count] = stretch.tensor()
            merged = torch.empty(numel, dtype=dtype)
            self._checkpoint.measurements.task(tensor).whole(copies, merged)
            self._whole = (tensor.name, merged)
        return self._whole[1]

    def _measure(self, tensor: OutputTensor, step: Step) -> None:
        """Measure a tensor, where its method needs that and nobody has done it."""
        known = self._checkpoint.measurements
        with self._checkpoint.lock:
            if not step.passes or known.known(tensor):
                return
            known.begin([tensor])
            again, numel = [tensor], tensor.info.numel
            task = known.task(tensor)
            stretch = max(1, _STRETCH // task.chunk) * task.chunk
            while again:
                for start in range(0, numel, stretch):
                    count = min(stretch, numel - start)
                    piece = Piece(tensor, step, start, count, 0, start, count)
                    inputs = self._read(tensor, step, start, count)
                    known.observe(piece, inputs, self._workspace)
                again = known.end_round(again)

    def _read(self, tensor: OutputTensor, step: Step, first: int, numel: int) -> list[Stretch]:
        inputs = []
        for model in step.sources:
            checkpoint = self._checkpoint.checkpoints[model]
            info, location = as_read(checkpoint, tensor.name), checkpoint.locate(tensor.name)
            length = numel * info.itemsize
            if len(self._rooms[model]) < room_for(length):
                self._rooms[model] = allocate(room_for(length))
            reader = self._files.get(model, location.file)
            offset = location.offset + first * info.itemsize
            view = reader.fetch(offset, length, self._rooms[model])
            inputs.append(Stretch.of_buffer(view, 0, info.dtype, numel))
        return inputs

    def close(self) -> None:
        """Close the files of the inner inputs."""
        self._files.close()
