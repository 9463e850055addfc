"""What a plan means on this machine now: traffic, and what was chosen and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from streammerge import native
from streammerge.checkpoint import Checkpoint, as_read
from streammerge.downloads import needed_downloads
from streammerge.plan import Plan
from streammerge.storage import IoMode

AUTO_DEVICE_REASON = "a merge waits for the disk, not for arithmetic"
NOT_COMPILED = "slowly: streammerge was installed where there was no C compiler"


@dataclass(frozen=True, slots=True)
class Forecast:
    """Traffic and choices.

    Attributes:
        bytes_read: of tensor data, from all inputs.
        bytes_written: of shard files.
        bytes_downloaded: of weight files, into the cache of the Hub's client.
        reading: how the input files will be read, and why.
        device: where blocks will be merged, and why.
    """

    bytes_read: int
    bytes_written: int
    bytes_downloaded: int
    reading: str
    device: str


def forecast(
    plan: Plan, checkpoints: Sequence[Checkpoint], io: IoMode = "auto", device: str = "auto"
) -> Forecast:
    """Return what a plan will move, and what is chosen for it."""
    modes: Counter[str] = Counter()
    for checkpoint in checkpoints:
        pending = {download.file for download in checkpoint.downloads(checkpoint.tensors)}
        modes["to be downloaded or checked"] += len(pending)
        for file in {checkpoint.locate(name).file for name in checkpoint.tensors} - pending:
            reader = checkpoint.open(file, io)
            modes[reader.mode] += 1
            reader.close()
    local = {"direct", "mmap", "buffered"} & modes.keys()
    reason = "by what lies in the page cache" if io == "auto" else "as given"
    counts = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items()) if count)
    return Forecast(
        bytes_read=sum(bytes_to_read(plan, checkpoints, shard.file) for shard in plan.shards),
        bytes_written=sum(shard.file_size for shard in plan.shards),
        bytes_downloaded=sum(d.missing for d in needed_downloads(plan, checkpoints)),
        reading=f"files: {counts}" + (f" ({reason})" if local else ""),
        device=_describe(device),
    )


def _describe(device: str) -> str:
    reason = AUTO_DEVICE_REASON if device == "auto" else "as given"
    chosen = "cpu" if device == "auto" else device
    return f"{chosen} ({reason if native.is_there() or chosen != 'cpu' else NOT_COMPILED})"


def bytes_to_read(plan: Plan, checkpoints: Sequence[Checkpoint], file: str) -> int:
    """Return the bytes of all inputs that go into a shard."""
    return sum(
        as_read(checkpoints[model], tensor.name).nbytes
        for shard in plan.shards
        if shard.file == file
        for tensor in shard.tensors
        for model in plan.steps[tensor.step].sources
    )
