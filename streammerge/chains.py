"""A merge as the input of another: its tensors are merged while they are read, and never written.

What is handed out is not rounded to the inner merge's dtype but fp32 (fp64 where it computes in
that), so that a chain of merges rounds once, at its end.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streammerge.budget import measurements, rows, whole_tensors
from streammerge.buffers import allocate
from streammerge.checkpoint import Checkpoint, as_read
from streammerge.formats.safetensors import Location
from streammerge.measuring import Measurements, cpu_workspace
from streammerge.openfiles import OpenFiles
from streammerge.plan import OutputTensor, Plan
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader
from streammerge.tensors import DTYPES, torch_dtype
from streammerge.windows import Piece, room_for, unit_length

_STRETCH = 1024**2  # elements that are merged at a time


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
        self._donor = checkpoints[plan.side_files_from]

    @property
    def scratch(self) -> int:
        """Room for a stretch of every source, and what reading and merging those needs."""
        sources = max((len(step.sources) for step in self.plan.steps), default=0)
        stretch = 8 * (2 * sources + 2) * _STRETCH + rows(self.plan) * sources
        inner = sum(checkpoint.scratch for checkpoint in self.checkpoints)
        return stretch + measurements(self.plan) + whole_tensors(self.plan) + inner

    @property
    def config(self) -> Mapping[str, Any]:
        """That of the model whose side files the inner merge takes."""
        return self._donor.config

    def locate(self, name: str) -> Location:
        """Return the tensor's own virtual file."""
        tensor = self.outputs[name]
        step = self.plan.steps[tensor.step]
        return Location(name, 0, step.compute if step.action == "merge" else "")

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Return what merges a tensor as it is read."""
        return MergedReader(self, self.outputs[file], mode)

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


class MergedReader:
    """One tensor of an inner merge, read by one thread at a time; see `storage.RangeReader`."""

    def __init__(self, checkpoint: MergedCheckpoint, tensor: OutputTensor, mode: IoMode) -> None:
        self.mode = "merged"
        self._checkpoint, self._tensor = checkpoint, tensor
        self._step = checkpoint.plan.steps[tensor.step]
        self._files = OpenFiles(checkpoint.checkpoints, mode, 1)
        self._rooms = [allocate(0) for _ in self._step.sources]
        self._workspace = cpu_workspace()
        self._whole: Tensor | None = None

    def fetch(self, offset: int, length: int, buffer: memoryview) -> memoryview:
        """Merge the elements that lie there into the buffer."""
        location = self._checkpoint.locate(self._tensor.name)
        dtype = location.dtype or self._tensor.dtype
        itemsize = DTYPES[dtype].itemsize
        view = buffer[:length]
        out = torch.frombuffer(view, dtype=torch_dtype(dtype), count=length // itemsize)
        if self._step.action == "merge":
            torch.set_num_threads(1)  # as in the threads that merge
            self._measure()
        for start in range(0, out.numel(), _STRETCH):
            self._fill(out[start : start + _STRETCH], offset // itemsize + start)
        return view

    def _fill(self, out: Tensor, first: int) -> None:
        unit = unit_length(self._step, self._tensor.shape)
        if self._step.granularity == "tensor":
            out.copy_(self._merged_whole(out.dtype)[first : first + out.numel()])
            return
        start = first // unit * unit
        stop = min(-(-(first + out.numel()) // unit) * unit, self._tensor.info.numel)
        inputs = self._read(start, stop - start)
        if self._step.action != "merge":
            out.copy_(inputs[0])
            return
        task = self._checkpoint.measurements.task(self._tensor)
        task(inputs, out, self._workspace, start, first)

    def _merged_whole(self, dtype: torch.dtype) -> Tensor:
        if self._whole is None:
            numel = self._tensor.info.numel
            self._whole = torch.empty(numel, dtype=dtype)
            self._checkpoint.measurements.task(self._tensor).whole(
                self._read(0, numel), self._whole
            )
        return self._whole

    def _measure(self) -> None:
        """Measure the tensor, where its method needs that and nobody has done it."""
        known, tensor = self._checkpoint.measurements, self._tensor
        with self._checkpoint.lock:
            if not self._step.passes or known.known(tensor):
                return
            known.begin([tensor])
            again, numel = [tensor], tensor.info.numel
            task = known.task(tensor)
            stretch = max(1, _STRETCH // task.chunk) * task.chunk
            while again:
                for start in range(0, numel, stretch):
                    count = min(stretch, numel - start)
                    piece = Piece(tensor, self._step, start, count, 0, start, count)
                    known.observe(piece, self._read(start, count), self._workspace)
                again = known.end_round(again)

    def _read(self, first: int, numel: int) -> list[Tensor]:
        inputs = []
        for index, model in enumerate(self._step.sources):
            checkpoint = self._checkpoint.checkpoints[model]
            info = as_read(checkpoint, self._tensor.name)
            location = checkpoint.locate(self._tensor.name)
            length = numel * info.itemsize
            if len(self._rooms[index]) < room_for(length):
                self._rooms[index] = allocate(room_for(length))
            reader = self._files.get(model, location.file)
            offset = location.offset + first * info.itemsize
            view = reader.fetch(offset, length, self._rooms[index])
            inputs.append(torch.frombuffer(view, dtype=torch_dtype(info.dtype), count=numel))
        return inputs

    def close(self) -> None:
        """Close the files of the inner inputs."""
        self._files.close()
