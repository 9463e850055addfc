"""Reads checkpoints as the pipeline does, but for any range, and merges views that are given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from streammerge.api import Prepared, execute
from streammerge.budget import make_layout
from streammerge.checkpoint import Checkpoint, as_read
from streammerge.outputs.directory import DirectoryOutput
from streammerge.planning import make_plan
from streammerge.recipe import average_recipe
from streammerge.report import Result
from streammerge.storage import ALIGNMENT, IoMode
from streammerge.tensors import torch_dtype

MODES: tuple[IoMode, ...] = ("direct", "mmap", "buffered")


def read_bytes(
    checkpoint: Checkpoint, name: str, first: int, length: int, mode: IoMode = "auto"
) -> bytes:
    """Some bytes of a tensor, as handed out."""
    place = checkpoint.locate(name)
    reader = checkpoint.open(place.file, mode)
    memory = np.zeros(length + 3 * ALIGNMENT, np.uint8)
    room = memory[-memory.ctypes.data % ALIGNMENT :].data
    try:
        return bytes(reader.fetch(place.offset + first, length, room))
    finally:
        reader.close()


def read_tensor(checkpoint: Checkpoint, name: str, mode: IoMode = "auto") -> torch.Tensor:
    """A whole tensor, as handed out."""
    info = as_read(checkpoint, name)
    raw = bytearray(read_bytes(checkpoint, name, 0, info.nbytes, mode))
    return torch.frombuffer(raw, dtype=torch_dtype(info.dtype)).reshape(info.shape)


def assert_ranges_are_slices(checkpoint: Checkpoint, name: str, seed: int, count: int = 40) -> None:
    """Any range of bytes, in any order and mode, is the slice of the whole."""
    whole = read_bytes(checkpoint, name, 0, as_read(checkpoint, name).nbytes)
    assert len(whole) == as_read(checkpoint, name).nbytes
    draw = random.Random(seed)
    for _ in range(count):
        first = draw.randrange(len(whole))
        length = min(draw.choice([1, 7, 1000, 300_000, len(whole)]), len(whole) - first)
        found = read_bytes(checkpoint, name, first, length, draw.choice(MODES))
        assert found == whole[first : first + length], (name, first, length)


def merge_views(
    checkpoints: Sequence[Checkpoint],
    out: Path,
    *,
    memory: int | None = None,
    io: IoMode = "auto",
    dtype: str = "auto",
    keep: Sequence[str] = (),
) -> Result:
    """Average opened checkpoints into a folder."""
    recipe = average_recipe([c.label for c in checkpoints], None, dtype, [], keep, None)
    plan = make_plan(recipe, checkpoints, 10**9)
    output = DirectoryOutput(out, [], overwrite=False)
    return execute(
        Prepared(plan, list(checkpoints), make_layout(plan, checkpoints, memory), output), io=io
    )
