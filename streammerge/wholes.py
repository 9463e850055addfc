"""Tensors whose method needs them whole, such as the spectral ones: read, merged, and handed out.

One at a time: the pieces of such a tensor come in the order of the output, the first of them has
the tensor read and merged, and the last lets go of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streammerge.buffers import allocate
from streammerge.checkpoint import Checkpoint, as_read
from streammerge.methods.running import Task
from streammerge.openfiles import OpenFiles
from streammerge.plan import OutputTensor, Step
from streammerge.storage import IoMode
from streammerge.tensors import torch_dtype
from streammerge.windows import room_for

_READ = 16 * 1024**2


class Wholes:
    """Merged tensors that pieces are still to be taken from."""

    def __init__(self, checkpoints: Sequence[Checkpoint], io: IoMode) -> None:
        self._checkpoints, self._io = checkpoints, io
        self._merged: dict[str, Tensor] = {}
        self._missing: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(
        self,
        tensor: OutputTensor,
        step: Step,
        task: Task,
        first: int,
        numel: int,
        look_over: Callable[[Sequence[Tensor]], None],
    ) -> Tensor:
        """Return elements of the merged tensor; its inputs are looked over before it is merged."""
        with self._lock:  # the threads of BLAS work on one tensor at a time
            if tensor.name not in self._merged:
                inputs = [self._read(model, tensor) for model in step.sources]
                look_over(inputs)
                out = torch.empty(tensor.info.numel, dtype=torch_dtype(tensor.dtype))
                task.whole(inputs, out)
                self._merged[tensor.name] = out
                self._missing[tensor.name] = tensor.info.numel
            merged = self._merged[tensor.name]
            self._missing[tensor.name] -= numel
            if self._missing[tensor.name] == 0:
                del self._merged[tensor.name]
        return merged[first : first + numel]

    def _read(self, model: int, tensor: OutputTensor) -> Tensor:
        checkpoint = self._checkpoints[model]
        info, location = as_read(checkpoint, tensor.name), checkpoint.locate(tensor.name)
        whole = allocate(info.nbytes)
        buffer = allocate(room_for(_READ))
        with OpenFiles(self._checkpoints, self._io, 1) as files:
            reader = files.get(model, location.file)
            for start in range(0, info.nbytes, _READ):
                length = min(_READ, info.nbytes - start)
                view = reader.fetch(location.offset + start, length, buffer)
                whole[start : start + length] = view
        return torch.frombuffer(whole, dtype=torch_dtype(info.dtype), count=info.numel)
