"""A method applied to a stretch of a tensor, block by block, in the dtype of the computation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from streammerge import native
from streammerge.errors import MergeError, printable
from streammerge.methods import Method
from streammerge.methods.measuring import Measurement
from streammerge.methods.place import Place
from streammerge.methods.threads import use_one_thread
from streammerge.methods.workspace import Workspace
from streammerge.stretch import Stretch, as_tensor, code_of
from streammerge.tensors import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from streammerge.stretch import Flat


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be done to one tensor; called with stretches of it.

    Attributes:
        method: computes a block.
        parameters: its keyword-only arguments.
        compute: code of the dtype of the computation, F32 or F64.
        has_base: the last input is the base model.
        name, shape: of the tensor.
        rows: the method works on whole rows.
        unit: elements that must not be separated.
        chunk: elements of a block, a multiple of that.
        measured: the finished measurement, for methods that need one.
    """

    method: Method
    parameters: Mapping[str, Any]
    compute: str
    has_base: bool
    name: str
    shape: tuple[int, ...]
    rows: bool
    unit: int
    chunk: int
    measured: Measurement | None = None

    def widened(self) -> Task:
        """Return the same in fp64."""
        return replace(self, compute="F64")

    def __call__(
        self,
        inputs: Sequence[Flat],
        out: Flat,
        workspace: Workspace,
        start: int,
        first: int,
    ) -> bool:
        """Merge a stretch.

        Args:
            inputs: of equal length and any float dtype; never written to.
            out: at most as long; a stretch if the inputs are stretches.
            workspace: where temporaries come from.
            start: number of the inputs' first element, a multiple of `unit`.
            first: number of the first element of `out`, not before `start`.

        Returns:
            whether inputs and results are finite; for a kernel, the results, which are where the
            inputs are.
        """
        if self.method.kernel and not self.rows:
            place = Place(self.name, self.shape, start, out.numel())
            *inputs, out = _for_kernel((*inputs, out))
            seen = {**self._seen(inputs), "measured": self.measured, "place": place}
            where = {"out": out, "workspace": workspace}
            return bool(self._call({**seen, **where}))
        use_one_thread()
        tensors = [as_tensor(flat) for flat in inputs]
        return self._merge_blocks(tensors, as_tensor(out), workspace, start, first)

    def _merge_blocks(
        self, inputs: Sequence[Tensor], out: Tensor, workspace: Workspace, start: int, first: int
    ) -> bool:
        from streammerge.methods.cancelling import SmallResults
        from streammerge.methods.finite import all_finite, are_finite, largest_bits

        again = partial(self._repeat, inputs, out, workspace)
        small = SmallResults(inputs, out, workspace, again) if self._repeats(inputs, out) else None
        finite = True
        for block in self._cut(inputs[0].numel()):
            parts = [tensor[block] for tensor in inputs]
            # Fetches them into the cache.
            largest = [largest_bits(part) for part in parts]
            finite = finite and all(map(are_finite, largest, map(code_of, parts)))
            seen = self._seen(self._copies(parts, workspace))
            about = {"measured": self.measured, "place": self._place(start, block)}
            result = self._merged({**seen, **about}).view(-1)
            begin, end = start + block.start, start + block.stop
            low, high = max(begin, first), min(end, first + out.numel())
            if low < high:
                wanted = result[low - begin : high - begin]
                merged = out[low - first : high - first]
                _round(wanted, merged, workspace)
                as_finite = small.look(block, max(largest)) if small else all_finite(merged)
                finite = finite and as_finite
        if small:
            small.settle()
        return finite

    def _repeats(self, inputs: Sequence[Tensor], out: Tensor) -> bool:
        """Whether elements are computed in fp32, and can be again without the others."""
        alone = not self.rows and "place" not in self.method.sees
        halves = out.dtype.itemsize == 2 and all(t.dtype is out.dtype for t in inputs)
        return alone and halves and self.compute == "F32"

    def _repeat(
        self, inputs: Sequence[Tensor], out: Tensor, workspace: Workspace, indices: Tensor
    ) -> None:
        """Compute some elements again in fp64."""
        import torch

        from streammerge.methods.rounding import round_once

        few = self._seen([tensor[indices].double() for tensor in inputs])
        values = self._merged({**few, "measured": self.measured})
        rounded = torch.empty(indices.numel(), dtype=out.dtype, device=out.device)
        round_once(values, rounded, workspace)
        out[indices] = rounded

    def observe(self, inputs: Sequence[Flat], workspace: Workspace, start: int) -> Iterator[Any]:
        """Yield what the measurement takes from each chunk of a stretch."""
        assert self.measured is not None
        every = 1 if self.rows else self.measured.every
        for block in self._cut(inputs[0].numel(), every):
            parts = [tensor[block][::every] for tensor in inputs]
            seen: Sequence[Any] = (
                _for_kernel(parts)
                if self.measured.raw
                else self._copies([as_tensor(part) for part in parts], workspace)
            )
            tensors, base = self._seen(seen).values()
            yield self.measured.observe(tensors, base, self._place(start, block))

    def _cut(self, numel: int, every: int = 1) -> Iterator[slice]:
        """Yield the blocks of a stretch, of which every so-many-th element is looked at."""
        step = self.chunk * every
        for begin in range(0, numel, step):
            yield slice(begin, min(begin + step, numel))

    def _copies(self, parts: Sequence[Tensor], workspace: Workspace) -> list[Tensor]:
        """Return the parts of a block in the dtype of the computation, as rows if it is on rows."""
        use_one_thread()
        compute = torch_dtype(self.compute)
        copies = [
            workspace.buffer(f"input {i}", compute, part.numel()).copy_(part)
            for i, part in enumerate(parts)
        ]
        return [copy.view(-1, self.unit) for copy in copies] if self.rows else copies

    def _place(self, start: int, block: slice) -> Place:
        return Place(self.name, self.shape, start + block.start, block.stop - block.start)

    def _seen(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Return the models' and the base model's part of the inputs."""
        if self.has_base:
            return {"tensors": inputs[:-1], "base": inputs[-1]}
        return {"tensors": inputs, "base": None}

    def _merged(self, available: Mapping[str, Any]) -> Tensor:
        """Return the result of a method that computes it from copies."""
        result: Tensor = self._call({**available, "out": None, "workspace": None})
        return result

    def _call(self, available: Mapping[str, Any]) -> Any:
        return self.method.function(**self.method.arguments(available), **self.parameters)

    def whole(self, copies: Sequence[Tensor], out: Tensor) -> None:
        """Merge a whole tensor for a method that needs it whole.

        Args:
            copies: of the inputs, flat and in the dtype of the computation; may be overwritten.
            out: flat, and as long.

        Raises:
            MergeError: a decomposition does not converge.
        """
        import torch

        use_one_thread()  # the bits that LAPACK returns depend on their number
        shaped = [copy.view(self.shape) for copy in copies]
        place = Place(self.name, self.shape, 0, out.numel())
        try:
            result = self._merged({**self._seen(shaped), "measured": None, "place": place})
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise MergeError(
                f"{self.method.name} cannot decompose {printable(self.name)}: {error}",
                "Leave the tensor out with --skip, or take it from the first model with --keep.",
            ) from error
        flat = result.reshape(-1)
        workspace = Workspace(out.device)
        for block in workspace.blocks(out.numel(), torch_dtype(self.compute)):
            _round(flat[block], out[block], workspace)


def _for_kernel(flats: Sequence[Flat]) -> list[Flat]:
    """Return elements as stretches where there are compiled loops for them, or else as tensors."""
    on_cpu = all(isinstance(flat, Stretch) or flat.device.type == "cpu" for flat in flats)
    if not (on_cpu and native.is_there()):
        use_one_thread()
        return [as_tensor(flat) for flat in flats]
    return [flat if isinstance(flat, Stretch) else Stretch.of_tensor(flat) for flat in flats]


def _round(values: Tensor, out: Tensor, workspace: Workspace) -> None:
    from streammerge.methods.rounding import round_once

    if values.dtype.itemsize == 8:
        round_once(values, out, workspace)
    else:
        out.copy_(values)
