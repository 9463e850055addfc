"""The plan of a merge: every tensor, shard and byte of the output, before any of it exists.

A plan is pure data, made by `planning`. It can be printed, written as JSON and compared by its
fingerprint; executing it decides nothing that changes a bit.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict

from streammerge.coverage import Action
from streammerge.formats.safetensors import encode_header
from streammerge.methods import Granularity
from streammerge.methods.parameters import Resolved
from streammerge.recipe import Recipe
from streammerge.tensors import TensorInfo

ARITHMETIC = 4
"""Changes whenever the same recipe would give other bits."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class InputFile(_Data):
    """One weight file of an input: enough to notice that it changed."""

    name: str
    size: int
    version: str
    header_sha256: str


class PlanInput(_Data):
    """One model: its reference, pinned to a commit on the Hub, and its files.

    The coefficient is its share where the merge is a plain average.
    """

    label: str
    pinned: str
    coefficient: float | None
    files: tuple[InputFile, ...]


class Step(_Data):
    """What is done to a tensor; shared by all tensors that are treated alike.

    Attributes:
        action: see `coverage.Decision`.
        sources: indices of the inputs that are read; the base model last, if there is one.
        has_base: the last source is the base model.
        method: name in the method registry; "" unless merging.
        parameters: all of the method's, with a value for each source but the base where they differ
            by model.
        compute: dtype code of the computation.
        granularity: what the method needs together; see `methods.Method`.
        passes: how often the sources are read before they are merged, at most.
    """

    action: Action
    sources: tuple[int, ...]
    has_base: bool = False
    method: str = ""
    parameters: Resolved = ()
    compute: Literal["F32", "F64"] = "F32"
    granularity: Granularity = "element"
    passes: int = 0


class OutputTensor(_Data):
    """A tensor of the output and the number of its step."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    step: int

    @property
    def info(self) -> TensorInfo:
        """The same without the step."""
        return TensorInfo(self.name, self.dtype, self.shape)


class OutputShard(_Data):
    """A file of the output: its tensors in the order of their data."""

    file: str
    tensors: tuple[OutputTensor, ...]

    def header(self) -> bytes:
        """Return the first bytes of the file: length and header."""
        return encode_header([tensor.info for tensor in self.tensors])

    @cached_property
    def file_size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header()) + sum(tensor.info.nbytes for tensor in self.tensors)


class Plan(_Data):
    """The whole merge.

    Attributes:
        recipe: what was asked for.
        inputs: the models.
        steps: what is done to tensors; `OutputTensor.step` points here.
        shards: the files of the output.
        side_files_from: index of the model whose config, tokenizer and so on are copied.
        notes: what the user should know; no influence on the output.
    """

    streammerge: str
    arithmetic: int
    recipe: Recipe
    inputs: tuple[PlanInput, ...]
    steps: tuple[Step, ...]
    shards: tuple[OutputShard, ...]
    side_files_from: int
    notes: tuple[str, ...]

    @property
    def tensors(self) -> list[OutputTensor]:
        """All tensors of the output."""
        return [tensor for shard in self.shards for tensor in shard.tensors]

    @property
    def parameters(self) -> int:
        """Number of elements of the output."""
        return sum(tensor.info.numel for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data of the output."""
        return sum(tensor.info.nbytes for tensor in self.tensors)

    def fingerprint(self) -> str:
        """Return a sha256 that changes with anything that changes a byte of the weights."""
        data = self.model_dump_json(exclude={"streammerge", "notes", "recipe"})
        return hashlib.sha256(data.encode()).hexdigest()
