"""A lane is where one compute thread merges blocks: in the CPU's cache, or on a device.

Both kinds give the same bits. Several lanes on one device overlap copying in, merging and copying
out, each on a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from streammerge.errors import PlanError
from streammerge.methods.workspace import Workspace
from streammerge.stretch import Stretch

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Merge(Protocol):
    """What a lane carries out; see `methods.running.Task`."""

    @property
    def unit(self) -> int:
        """Elements that must not be separated."""

    def __call__(
        self,
        inputs: Sequence[Stretch | Tensor],
        out: Stretch | Tensor,
        workspace: Workspace,
        start: int,
        first: int,
    ) -> bool:
        """Merge one stretch of the inputs with a workspace on the same device.

        Returns:
            whether all that was read and written is finite.
        """


DEVICE_BLOCK_BYTES = 64 * 1024**2
_SMALLEST_DEVICE_BLOCK = 1024**2
_FREED_ONCE = 28 * 1024**2


class Lane(Protocol):
    """Where one thread merges.

    Attributes:
        workspace: where the temporaries of a merge come from.
        on_cpu: likewise, for what is done on the CPU whatever the device, so that it has the same
            bits everywhere: the sums behind a coefficient, and what is merged row by row.
    """

    workspace: Workspace
    on_cpu: Workspace

    def run(
        self, merge: Merge, inputs: Sequence[Stretch], out: Stretch, start: int, first: int
    ) -> bool:
        """Merge stretches; return what `merge` returns.

        Args:
            merge: what to do.
            inputs: of equal length, at least that of `out`.
            out: where the result goes.
            start: number of the first element of the inputs.
            first: number of the first element of `out`.
        """


class CpuLane:
    """Merges where the data lie."""

    def __init__(self) -> None:
        # glibc returns freed memory to the system, to be faulted in again by the next block, where
        # it is more than twice the largest block freed so far: a fifth of the time of TIES.
        np.empty(_FREED_ONCE, np.uint8)
        self.workspace = self.on_cpu = Workspace()

    def run(
        self, merge: Merge, inputs: Sequence[Stretch], out: Stretch, start: int, first: int
    ) -> bool:
        """Merge in place."""
        return merge(inputs, out, self.workspace, start, first)


class DeviceLane:
    """Copies a block to a device, merges it there and copies the result back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.workspace = Workspace(device, DEVICE_BLOCK_BYTES)
        self.on_cpu = Workspace()
        self._stream = _stream(device)

    def run(
        self, merge: Merge, inputs: Sequence[Stretch], out: Stretch, start: int, first: int
    ) -> bool:
        """Merge in blocks; where the device lacks the memory, in blocks of half the size."""
        import torch

        numel, unit = inputs[0].numel(), merge.unit
        step = max(1, self.workspace.block_bytes // 8 // unit) * unit
        if numel > step:
            finite = True
            for begin in range(0, numel, step):
                part = [tensor[begin : begin + step] for tensor in inputs]
                low = max(start + begin, first)
                high = min(start + begin + step, first + out.numel())
                if low < high:
                    wanted = out[low - first : high - first]
                    finite &= self.run(merge, part, wanted, start + begin, low)
            return finite
        try:
            return self._run(merge, inputs, out, start, first)
        except torch.OutOfMemoryError as error:
            smaller = self.workspace.block_bytes // 2
            if smaller < _SMALLEST_DEVICE_BLOCK:
                raise PlanError(
                    f"the device {self._device} has no memory left",
                    "Free some of it, or merge with --device cpu.",
                ) from error
            self.workspace = Workspace(self._device, smaller)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return self.run(merge, inputs, out, start, first)

    def _run(
        self, merge: Merge, inputs: Sequence[Stretch], out: Stretch, start: int, first: int
    ) -> bool:
        import torch

        with torch.cuda.stream(self._stream):  # does nothing for None
            on_device = []
            for index, tensor in enumerate(map(Stretch.tensor, inputs)):
                buffer = self.workspace.buffer(f"copied {index}", tensor.dtype, tensor.numel())
                on_device.append(buffer.copy_(tensor, non_blocking=True))
            merged = out.tensor()
            result = self.workspace.buffer("output", merged.dtype, out.numel())
            finite = merge(on_device, result, self.workspace, start, first)
            merged.copy_(result, non_blocking=True)
        if self._stream is not None:
            self._stream.synchronize()  # releases the GIL; the other lanes go on meanwhile
        return finite


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    import torch

    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def choose_device(name: str) -> str:
    """Return the device of that name, if it is there.

    Args:
        name: cpu, cuda or cuda:<i>. Apple's MPS has no fp64, in which all is summed.

    Raises:
        PlanError: the device is not there or not known.
    """
    if name == "cpu":
        return name
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise PlanError(
            f"--device {name!r} is not known", "Choose auto, cpu, cuda or cuda:<i>."
        ) from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count()}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise PlanError(
            f"there is no device {name!r} here", "Use --device cpu; the bits are equal."
        )
    return str(device)


def make_lane(device: str) -> Lane:
    """Return a lane on a device, for the calling thread."""
    if device == "cpu":
        return CpuLane()
    import torch

    return DeviceLane(torch.device(device))


def pin(buffers: Sequence[memoryview], device: str) -> Callable[[], None]:
    """Register buffers with a CUDA device once, so that copies run at the speed of the bus.

    Returns:
        what undoes it.
    """
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    pointers = []
    for buffer in buffers:
        if len(buffer):
            pointer = torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
            if int(runtime.cudaHostRegister(pointer, len(buffer), 0)) == 0:
                pointers.append(pointer)

    def unpin() -> None:
        for pointer in pointers:
            runtime.cudaHostUnregister(pointer)

    return unpin
