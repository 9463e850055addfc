"""Did everybody do the same job? Windows of an output, checked against the mean taken in float64.

    wrong, seen = wrong_elements(merged, [model_a, model_b], [1, 1])

Speed says nothing about a merge that computes something else. A few hundred windows of each output
are compared with the exactly rounded mean; peers that sum in another order may differ in some.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

_SIZES = {"BF16": 2, "F16": 2, "F32": 4}
_WINDOW = 65_536  # elements
_WINDOWS = 200


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie."""

    file: Path
    start: int
    dtype: str
    count: int

    def read(self, first: int, count: int) -> bytes:
        size = _SIZES[self.dtype]
        with self.file.open("rb") as stream:
            stream.seek(self.start + first * size)
            return stream.read(count * size)


def places(model: Path) -> dict[str, Place]:
    """All tensors of a checkpoint folder."""
    found: dict[str, Place] = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            count = (end - begin) // _SIZES[entry["dtype"]]
            found[name] = Place(file, 8 + length + begin, entry["dtype"], count)
    return found


def wrong_elements(out: Path, models: Sequence[Path], weights: Sequence[float]) -> tuple[int, int]:
    """Elements that are not the rounded mean, and elements looked at."""
    merged, sources = places(out), [places(model) for model in models]
    if merged.keys() != sources[0].keys():
        missing = len(sources[0].keys() - merged.keys())
        raise ValueError(f"{out} lacks {missing} of {len(sources[0])} tensors")
    whole = _integers(weights)
    random = np.random.default_rng(0)
    wrong = seen = 0
    for name in random.choice(sorted(merged), min(_WINDOWS, len(merged)), replace=False):
        place = merged[str(name)]
        first = int(random.integers(0, max(1, place.count - _WINDOW)))
        count = min(_WINDOW, place.count - first)
        total = np.zeros(count)
        for source, weight in zip(sources, whole, strict=True):
            total += weight * _decode(source[str(name)].read(first, count), place.dtype)
        expected = _round(total / sum(whole), place.dtype)
        wrong += int((expected != _bits(place.read(first, count), place.dtype)).sum())
        seen += count
    return wrong, seen


def _integers(weights: Sequence[float]) -> list[int]:
    """Decimal weights as integers of the same proportions: 0.7, 0.3 become 7, 3."""
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    return [int(weight * scale) for weight in exact]


def _bits(raw: bytes, dtype: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(raw, f"<u{_SIZES[dtype]}").astype(np.uint64)


def _decode(raw: bytes, dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "BF16":
        words = np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)
        return words.view(np.float32).astype(np.float64)
    return np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4").astype(np.float64)


def _round(values: npt.NDArray[np.float64], dtype: str) -> npt.NDArray[np.uint64]:
    """The bits of the nearest value, ties to even, from float64 in one step."""
    if dtype != "BF16":
        return _bits(values.astype("<f2" if dtype == "F16" else "<f4").tobytes(), dtype)
    bits = values.view(np.uint64)
    dropped = np.uint64(45)  # a bf16 has 7 of float64's 52 mantissa bits
    odd = (bits >> dropped) & np.uint64(1)
    bits = (bits + (np.uint64(1) << np.uint64(44)) - np.uint64(1) + odd) >> dropped
    # Now sign (1), exponent (11), mantissa (7): rebias the exponent from 1023 to 127.
    sign, rest = bits >> np.uint64(18), bits & np.uint64(0x3FFFF)
    rebased = np.where(rest == 0, 0, rest - np.uint64((1023 - 127) << 7))
    return (sign << np.uint64(15)) | rebased.astype(np.uint64)
