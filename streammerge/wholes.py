"""Tensors whose method needs them whole, such as the spectral ones: read, merged, and handed out.

The pieces of such a tensor come in the order of the output. The thread that gets the first of them
reads and merges the tensor, others that need it meanwhile wait, and the last piece lets go of it.
Only merging is limited to some tensors at a time: who merges waits for nobody, so nobody waits
forever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from streammerge.buffers import allocate
from streammerge.checkpoint import Checkpoint, as_read
from streammerge.methods.running import Task
from streammerge.needs import READ_AT_ONCE
from streammerge.openfiles import OpenFiles, ReadModes
from streammerge.storage import IoMode
from streammerge.stretch import Stretch
from streammerge.tensors import torch_dtype
from streammerge.windows import Piece, room_for

if TYPE_CHECKING:
    from torch import Tensor

Check = Callable[[int, int, Stretch], None]
"""Called with a model's number, that of an element, and what is read from there; may raise."""


class Wholes:
    """Merged tensors that pieces are still to be taken from.

    Args:
        checkpoints: the opened inputs.
        io: how they are read.
        modes: where it is noted how that was.
        at_once: how many tensors may be merged at the same time.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], io: IoMode, modes: ReadModes, at_once: int
    ) -> None:
        self._checkpoints, self._io, self._modes = checkpoints, io, modes
        self._merged: dict[str, Future[Tensor]] = {}
        self._missing: dict[str, int] = {}
        self._lock = threading.Lock()
        self._room = threading.Semaphore(at_once)

    def take(self, piece: Piece, task: Task, check: Check) -> Tensor:
        """Return the elements of a piece, merged.

        Raises:
            StreammergeError: what `check` raises, or reading or merging the tensor.
        """
        name = piece.tensor.name
        with self._lock:
            first_to_come = name not in self._merged
            merged = self._merged.setdefault(name, Future())
            self._missing[name] = self._missing.get(name, piece.tensor.info.numel) - piece.numel
            if self._missing[name] == 0:
                del self._merged[name], self._missing[name]
        if first_to_come:
            try:
                with self._room:
                    merged.set_result(self._merge(piece, task, check))
            except BaseException as error:
                merged.set_exception(error)
        return merged.result()[piece.first : piece.first + piece.numel]

    def _merge(self, piece: Piece, task: Task, check: Check) -> Tensor:
        import torch

        copies = [self._read(model, piece, task, check) for model in piece.step.sources]
        out = torch.empty(piece.tensor.info.numel, dtype=torch_dtype(piece.tensor.dtype))
        task.whole(copies, out)
        return out

    def _read(self, model: int, piece: Piece, task: Task, check: Check) -> Tensor:
        import torch

        checkpoint, name = self._checkpoints[model], piece.tensor.name
        info, location = as_read(checkpoint, name), checkpoint.locate(name)
        copy = torch.empty(info.numel, dtype=torch_dtype(task.compute))
        step = READ_AT_ONCE // info.itemsize
        buffer = allocate(room_for(READ_AT_ONCE))
        with OpenFiles(self._checkpoints, self._io, self._modes, 1) as files:
            reader = files.get(model, location.file)
            for first in range(0, info.numel, step):
                count = min(step, info.numel - first)
                offset = location.offset + first * info.itemsize
                view = reader.fetch(offset, count * info.itemsize, buffer)
                stretch = Stretch.of_buffer(view, 0, info.dtype, count)
                check(model, first, stretch)
                copy[first : first + count] = stretch.tensor()
        return copy
