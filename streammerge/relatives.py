"""Are the inputs relatives? A few samples of their matrices tell, before hours are spent.

Weights of independently trained models lie in directions of their own: their cosine is near 0, and
their average computes nothing. Fine-tunes of one model stay close to it (docs/measurements.md).
Only matrices are looked at, since norms and biases are alike in all models; and they are centred,
so that a common mean does not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from statistics import median

import numpy as np
from numpy.typing import NDArray

from streammerge.checkpoint import Checkpoint, as_read
from streammerge.errors import UnrelatedError, listing, printable
from streammerge.plan import OutputTensor, Plan
from streammerge.views.arrays import decode

MATRICES = 8
"""How many matrices are sampled: one range of each, so few requests to a remote store."""
ELEMENTS = 8192
"""Elements of a sample: at most 64 KiB, and a cosine that is off by about 0.01."""
THRESHOLD = 0.2
"""Cosine below which two matrices count as unrelated. Measured: at most 0.03 between independent
trainings, 0.25 and more between a model and its own initialisation, 0.99 between fine-tunes."""
_FEWEST = 512  # elements that say anything; below that chance gives cosines near the threshold
_DISTINCT = 16  # values in a sample below which it is a mask or a constant, no weights
_GOLDEN = 0.6180339887498949  # multiples of it, less their whole part, spread evenly

Sample = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Relation:
    """How two models compare.

    Attributes:
        model, reference: their labels.
        cosines: of each sampled matrix, by name.
        distance: median of the matrices' relative L2 distances ‖a − b‖ / ‖a‖ to the reference a.
    """

    model: str
    reference: str
    cosines: Mapping[str, float]
    distance: float

    @property
    def cosine(self) -> float:
        """The median over the matrices."""
        return median(self.cosines.values())

    @property
    def foreign(self) -> list[str]:
        """The matrices that the models do not have in common."""
        return [name for name, cosine in self.cosines.items() if cosine < THRESHOLD]


def check_relatives(plan: Plan, checkpoints: Sequence[Checkpoint], strict: bool) -> list[str]:
    """Return a note on each model that looks unrelated to the base, or to the first model.

    Args:
        plan: the merge.
        checkpoints: its opened inputs.
        strict: raise instead.

    Raises:
        UnrelatedError: some models look unrelated, and `strict` is set.
        ReadError: an input could not be read.
    """
    found = [_describe(relation) for relation in compare(plan, checkpoints) if relation.foreign]
    if found and strict:
        raise UnrelatedError(
            f"{len(found)} of the models look unrelated to the others:\n{listing(found)}",
            "Merge models of one origin; or leave --strict out, and this is only a note.",
        )
    return found


def compare(plan: Plan, checkpoints: Sequence[Checkpoint]) -> list[Relation]:
    """Return how each model of a plan compares with its base, or with its first model.

    Models of which nothing can be said, such as constant ones, are left out.
    """
    chosen = _choose(plan, checkpoints)
    if not chosen:
        return []
    step = plan.steps[chosen[0].step]
    models = [checkpoints[index] for index in step.sources]
    reference = models[-1] if step.has_base else models[0]
    samples = _read_all(models, chosen)
    origin = samples[models.index(reference)]
    relations = []
    for model, sample in zip(models, samples, strict=True):
        cosines = {name: _cosine(origin[name], values) for name, values in sample.items()}
        known = {name: cosine for name, cosine in cosines.items() if cosine is not None}
        if known and model is not reference:
            distance = median(_distance(origin[name], sample[name]) for name in known)
            relations.append(Relation(model.label, reference.label, known, distance))
    return relations


def _choose(plan: Plan, checkpoints: Sequence[Checkpoint]) -> list[OutputTensor]:
    """Return some of the larger matrices, spread over the model, all made of the same models."""
    groups: dict[tuple[int, ...], list[OutputTensor]] = {}
    for tensor in sorted(plan.tensors, key=lambda tensor: tensor.name):
        step = plan.steps[tensor.step]
        matrix = len(tensor.shape) > 1 and tensor.info.numel >= _FEWEST
        if matrix and step.action == "merge" and len(step.sources) > 1:
            groups.setdefault(step.sources, []).append(tensor)
    sources = max(groups, key=lambda key: sum(t.info.numel for t in groups[key]), default=())
    matrices = [
        tensor
        for tensor in groups.get(sources, ())
        # What a view computes lies in no file, and may cost a pass over its whole model.
        if all(checkpoints[i].locate(tensor.name).file.endswith(".safetensors") for i in sources)
    ]
    if not matrices:
        return []
    middle = median(tensor.info.numel for tensor in matrices)
    larger = [tensor for tensor in matrices if tensor.info.numel >= middle]
    count = min(MATRICES, len(larger))
    return [larger[(2 * i + 1) * len(larger) // (2 * count)] for i in range(count)]


def _read_all(
    models: Sequence[Checkpoint], tensors: Sequence[OutputTensor]
) -> list[dict[str, Sample]]:
    """Return a sample of each tensor for each model."""
    wanted = [(model, tensor.name, i) for model in models for i, tensor in enumerate(tensors)]
    with ThreadPoolExecutor(max_workers=8) as pool:  # a remote store answers after 0.1 s
        found = iter(list(pool.map(lambda task: _read(*task), wanted)))
    return [{tensor.name: next(found) for tensor in tensors} for _ in models]


def _read(model: Checkpoint, name: str, rank: int) -> Sample:
    """Return a stretch of a tensor, at a place that only its rank and size decide."""
    info, location = as_read(model, name), model.locate(name)
    count = min(ELEMENTS, info.numel)
    first = int((info.numel - count) * (rank * _GOLDEN % 1))
    length = count * info.itemsize
    reader = model.open(location.file, "sample")
    try:
        offset = location.offset + first * info.itemsize
        raw = reader.fetch(offset, length, memoryview(bytearray(length)))
        return decode(raw, info.dtype).astype(np.float64)
    finally:
        reader.close()


def _cosine(a: Sample, b: Sample) -> float | None:
    """Return the cosine of two centred samples; None where they say nothing.

    That is so where both are constant, or masks, or where few elements are finite in both.
    """
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    if a.size < _FEWEST:
        return None
    flat = [len(set(sample[:1024].tolist())) < _DISTINCT for sample in (a, b)]
    if any(flat):
        return None if all(flat) else 0.0
    a, b = (_centred(sample) for sample in (a, b))
    return _product(a, b)


def _centred(sample: Sample) -> Sample:
    """Return a sample less its mean, of length 1; scaled first, so that no square overflows."""
    scaled = sample / np.abs(sample).max()
    centred = scaled - scaled.mean()
    unit: Sample = centred / sqrt(_product(centred, centred))
    return unit


def _distance(a: Sample, b: Sample) -> float:
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    largest = np.abs(a).max()
    if largest == 0:
        return float("inf")
    a, b = a / largest, b / largest
    return sqrt(_product(b - a, b - a) / _product(a, a))


def _product(a: Sample, b: Sample) -> float:
    # By BLAS it would wake threads, which go on to spin on the cores that the merge begins on.
    return float(np.einsum("i,i", a, b))


def _describe(relation: Relation) -> str:
    foreign, total = relation.foreign, len(relation.cosines)
    model, reference = relation.model, relation.reference
    if 2 * len(foreign) >= total:
        return (
            f"{model} looks unrelated to {reference}: of {total} sampled matrices the median "
            f"cosine is {relation.cosine:.2f}, the median relative distance "
            f"{relation.distance:.2g}. Models of one origin have cosines near 1, independently "
            "trained ones near 0, and merging these gives noise"
        )
    names = ", ".join(printable(name, 80) for name in foreign[:3])
    return (
        f"{model} shares only a part of its weights with {reference}: {len(foreign)} of {total} "
        f"sampled matrices have a cosine below {THRESHOLD} ({names})"
    )
