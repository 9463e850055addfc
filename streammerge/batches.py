"""In which order a plan is carried out: what is to be measured, then the windows to be merged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from streammerge.checkpoint import Checkpoint
from streammerge.needs import MEASURED_AT_ONCE
from streammerge.plan import OutputTensor, Plan
from streammerge.windows import Window, cut_windows

MEASURE_AHEAD = 512 * 1024**2
"""Bytes of inputs that are measured before they are merged."""


def batches(
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    size: int,
    without: Collection[str] = (),
    abreast: int = 1,
) -> Iterator[tuple[list[OutputTensor], list[Window]]]:
    """Yield stretches of the output, each with the tensors to be measured before it.

    They are long enough that waiting for a round to end does not matter, and short enough that what
    was read to be measured may still lie in the page cache when it is merged. A tensor that lies in
    one window is measured there, by the thread that merges it.

    Args:
        plan, checkpoints, size, without, abreast: as for `cut_windows`.
    """
    windows: list[Window] = []
    ahead: dict[str, OutputTensor] = {}
    seen: set[str] = set()
    nbytes = 0
    for window in cut_windows(plan, checkpoints, size, without, abreast):
        for piece in window.pieces:
            split = piece.numel < piece.tensor.info.numel
            if piece.step.passes and split and piece.tensor.name not in seen:
                ahead[piece.tensor.name] = piece.tensor
                seen.add(piece.tensor.name)
                nbytes += piece.tensor.info.nbytes * len(piece.step.sources)
        windows.append(window)
        if not ahead or nbytes >= MEASURE_AHEAD or len(ahead) >= MEASURED_AT_ONCE:
            yield list(ahead.values()), windows
            windows, ahead, nbytes = [], {}, 0
    if windows:
        yield list(ahead.values()), windows
