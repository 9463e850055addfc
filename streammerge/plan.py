"""recipe + headers → Plan: every tensor, shard and byte of the output, before any of it exists.

A plan is pure data. It is made without reading tensor data and without torch, can be printed,
written as JSON and compared by its fingerprint; executing it decides nothing that changes a bit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property

from huggingface_hub import split_state_dict_into_shards_factory
from pydantic import BaseModel, ConfigDict

from streammerge.checkpoint import Checkpoint
from streammerge.configs import compare_configs
from streammerge.coverage import Action, Decision, cover
from streammerge.errors import RecipeError
from streammerge.formats.safetensors import encode_header
from streammerge.recipe import Recipe
from streammerge.tensors import TensorInfo, layout_key
from streammerge.version import __version__
from streammerge.weights import Weights, choose_accumulator

ARITHMETIC = 1
"""Changes whenever the same recipe would give other bits."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(_Data):
    """One weight file of an input: enough to notice that it changed."""

    name: str
    size: int
    version: str
    header_sha256: str


class PlanInput(_Data):
    """One model: its reference (pinned to a commit), its weight over the divisor, its files."""

    label: str
    pinned: str
    weight: int
    coefficient: float
    files: tuple[InputFile, ...]


class Step(_Data):
    """What is done to a tensor; shared by all tensors that are treated alike.

    Attributes:
        action: see `coverage.Decision`.
        sources: indices of the inputs, zero weights left out.
        method: name in the method registry; "" unless merging.
        weights: one for each source; integers where `exact`, else with 1 as the largest.
        divisor: what the weighted sum is divided by; the sum of all weights.
        accumulator: dtype code of the running sum.
        exact: every product and the divisor are exact in it.
    """

    action: Action
    sources: tuple[int, ...]
    method: str = ""
    weights: tuple[int | float, ...] = ()
    divisor: int | float = 1
    accumulator: str = "F32"
    exact: bool = True


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


def make_plan(recipe: Recipe, checkpoints: Sequence[Checkpoint], max_shard_size: int) -> Plan:
    """Return the plan of a merge.

    Args:
        recipe: what was asked for.
        checkpoints: its models, opened, in the same order.
        max_shard_size: bytes of tensor data in an output shard, unless one tensor is larger.

    Raises:
        CoverageError: the inputs do not match each other.
        RecipeError: a part of the recipe that does not fit the inputs.
    """
    weights = recipe.exact_weights()
    coverage = cover(checkpoints, recipe)
    steps: dict[Step, int] = {}
    tensors = []
    for decision in coverage.decisions:
        step = _step(decision, weights, checkpoints)
        number = steps.setdefault(step, len(steps))
        info = decision.tensor
        tensors.append(
            OutputTensor(name=info.name, dtype=info.dtype, shape=info.shape, step=number)
        )
    donor = _donor(recipe, checkpoints)
    notes = [note for c in checkpoints for note in c.notes] + coverage.notes
    return Plan(
        streammerge=__version__,
        arithmetic=ARITHMETIC,
        recipe=recipe,
        inputs=tuple(_inputs(checkpoints, weights)),
        steps=tuple(steps),
        shards=_shards(tensors, max_shard_size),
        side_files_from=donor,
        notes=(*notes, *compare_configs(checkpoints, donor)),
    )


def _step(decision: Decision, weights: Weights, checkpoints: Sequence[Checkpoint]) -> Step:
    if decision.action != "merge":
        return Step(action=decision.action, sources=decision.sources)
    sources = tuple(i for i in decision.sources if weights.integers[i])
    chosen = tuple(weights.integers[i] for i in sources)
    dtypes = [checkpoints[i].tensors[decision.tensor.name].dtype for i in sources]
    accumulator, exact = choose_accumulator(chosen, dtypes, decision.tensor.dtype)
    unit = 1 if exact else max(abs(weight) for weight in chosen)
    return Step(
        action="merge",
        sources=sources,
        method="average",
        weights=chosen if exact else tuple(float(Fraction(weight, unit)) for weight in chosen),
        divisor=weights.total if exact else float(Fraction(weights.total, unit)),
        accumulator=accumulator,
        exact=exact,
    )


def _inputs(checkpoints: Sequence[Checkpoint], weights: Weights) -> list[PlanInput]:
    inputs = []
    for checkpoint, weight, coefficient in zip(
        checkpoints, weights.integers, weights.coefficients, strict=True
    ):
        files = tuple(
            InputFile(name=name, size=identity.size, version=identity.version, header_sha256=digest)
            for name, (identity, digest) in sorted(checkpoint.identity().items())
        )
        inputs.append(
            PlanInput(
                label=checkpoint.label,
                pinned=checkpoint.pinned,
                weight=weight,
                coefficient=coefficient,
                files=files,
            )
        )
    return inputs


def _donor(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> int:
    if recipe.side_files_from is None:
        return 0
    if recipe.side_files_from in recipe.models:
        return recipe.models.index(recipe.side_files_from)
    raise RecipeError(
        f"--side-files-from {recipe.side_files_from!r} is none of the models",
        f"Give one of: {', '.join(recipe.models)}.",
    )


def _shards(tensors: list[OutputTensor], max_shard_size: int) -> tuple[OutputShard, ...]:
    # The split follows the names alone, so that the inputs' own sharding has no influence.
    by_name = {tensor.name: tensor for tensor in sorted(tensors, key=_natural_key)}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor.info.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return tuple(
        OutputShard(
            file=file,
            tensors=tuple(sorted((by_name[n] for n in names), key=lambda t: layout_key(t.info))),
        )
        for file, names in split.filename_to_tensors.items()
    )


def _natural_key(tensor: OutputTensor) -> list[tuple[int, str]]:
    """Order layers.2 before layers.10; the digits' text breaks ties such as 1 and 01."""
    parts = re.split(r"(\d+)", tensor.name)
    return [(int(part) if part.isascii() and part.isdigit() else -1, part) for part in parts]
