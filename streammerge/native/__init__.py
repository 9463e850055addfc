"""The loops of kernels.c, called with stretches of tensors.

They are compiled when the package is installed (hatch_build.py). Where that could not be done, and
on devices, the callers do the same with torch and get the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Callable, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streammerge.stretch import Stretch

KINDS = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}
"""Numbers of the dtypes, by safetensors code."""
TILE = 256
"""Elements that go through a loop at once, as in kernels.c."""
SLOTS = 2**10
"""Room of a tally of keys, likewise."""

Doubles = NDArray[np.float64]
Keys = NDArray[np.int64]


class _Tensor(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("kind", c_int64))


class _Voter(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("weight", c_double),
        ("scale", c_double),
        ("limit", c_double),
        ("below", c_int64),
        ("generator", c_uint64 * 4),
    )


_ARGUMENTS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "weighted_sum": (
        c_int,
        (POINTER(_Tensor), c_size_t, c_void_p, c_double, c_int, _Tensor, c_size_t),
    ),
    "inner_products": (
        None,
        (POINTER(_Tensor), c_size_t, POINTER(_Tensor), c_size_t, c_int, c_void_p, c_void_p),
    ),
    "keys_between": (
        c_size_t,
        (
            *(_Tensor, POINTER(_Tensor), c_size_t, c_int64, c_int64),
            *(c_void_p, c_void_p, POINTER(c_size_t)),
        ),
    ),
    "merge_elected": (
        c_int,
        (
            *(POINTER(_Voter), c_size_t, _Tensor, c_uint64, c_double),
            *(c_int, c_int, c_void_p, _Tensor, c_size_t),
        ),
    ),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled loops; None where there are none."""
    return load(Path(__file__).parent)


def load(folder: Path) -> ctypes.CDLL | None:
    """Return the compiled loops of a folder; None if they were made from other code than it has."""
    try:
        loaded = ctypes.CDLL(str(folder / "kernels.so"))
        loaded.source.restype = c_char_p
        made_from = bytes(loaded.source()).decode()
        if made_from != hashlib.sha256((folder / "kernels.c").read_bytes()).hexdigest():
            return None
    except (OSError, AttributeError):
        return None
    for name, (result, arguments) in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    return loaded


def is_there() -> bool:
    """Whether there are compiled loops."""
    return library() is not None


def weighted_sum(
    tensors: Sequence[Stretch],
    weights: Sequence[float],
    divisor: float,
    in_fp32: bool,
    out: Stretch,
) -> bool:
    """Write Σ wᵢxᵢ / divisor, in fp64 and rounded once; return whether all results are finite.

    Args:
        tensors, weights: xᵢ and wᵢ; flat and of equal length, in any float dtypes.
        divisor: of the sum.
        in_fp32: products are exact in fp32, and sums that are so too may be divided there, which
            gives the same sooner; see `methods.weights.quotient_in_fp32`.
        out: flat, and as long.
    """
    shares = np.array(weights, np.float64)
    inputs = _located(tensors)
    call = _loop("weighted_sum")
    return bool(call(inputs, len(tensors), _at(shares), divisor, in_fp32, _place(out), out.numel()))


def difference(vector: Stretch, origin: Stretch) -> Doubles:
    """Return vector − origin in fp64."""
    values = np.empty(vector.numel())
    weighted_sum([vector, origin], [1.0, -1.0], 1.0, False, Stretch(values.view(np.int64), "F64"))
    return values


def inner_products(
    vectors: Sequence[Stretch], origin: Stretch | None, finite_only: bool = False
) -> list[float]:
    """Return the inner products of all pairs of vectors − origin, the upper triangle by rows.

    Args:
        vectors, origin: flat and of equal length, in any float dtypes.
        finite_only: what is not finite counts as zero.
    """
    count = len(vectors)
    tiles, sums = np.empty((count, TILE)), np.empty((count * (count + 1) // 2, TILE))
    inputs, start = _located(vectors), _optional(origin)
    call = _loop("inner_products")
    call(inputs, count, start, vectors[0].numel(), finite_only, _at(tiles), _at(sums))
    return [float(value) for value in sums[:, 0]]


def keys_between(
    vector: Stretch, origin: Stretch | None, low: int, high: int
) -> tuple[int, Keys, Keys]:
    """Tally the keys of vector − origin, which are the bits of its magnitudes in fp64.

    Returns:
        how many lie above `high`; those from `low` to `high`, in any order and perhaps more than
        once; and how often each was seen.
    """
    slots, others = np.zeros((SLOTS, 2), np.int64), np.empty(vector.numel(), np.int64)
    above = c_size_t()
    call = _loop("keys_between")
    rest = call(
        *(_place(vector), _optional(origin), vector.numel()),
        *(low, high, _at(slots), _at(others), byref(above)),
    )
    seen = slots[slots[:, 1] > 0]
    keys = np.concatenate([seen[:, 0], others[:rest]])
    return above.value, keys, np.concatenate([seen[:, 1], np.ones(rest, np.int64)])


@dataclass(frozen=True, slots=True)
class Voter:
    """A model in an election of signs.

    Attributes:
        tensor: a stretch of it.
        weight: what counts in the divisor where the model agrees.
        scale: what its task vector is multiplied by.
        limit: the smallest magnitude of its task vector that stays.
        below: of 2¹⁶, the chance that an element stays.
        generator: state and increment of the PCG64DXSM that draws a number for each element, four
            from each of its numbers; those stay whose number is smaller than `below`.
    """

    tensor: Stretch
    weight: float
    scale: float
    limit: float = 0.0
    below: int = 2**16
    generator: tuple[int, int] = (0, 1)


def merge_elected(
    voters: Sequence[Voter],
    base: Stretch,
    position: int,
    scaling_factor: float,
    by_count: bool,
    normalize: bool,
    out: Stretch,
) -> bool:
    """Write θ₀ + λ Σ δᵢmᵢ, δᵢ scaled task vectors; see `methods.combining.add_elected`.

    Args:
        voters: the models.
        base, scaling_factor: θ₀ and λ.
        position: of the first element in its tensor.
        by_count: the sign of an element is that which more models have, not that of Σ δᵢ.
        normalize: divide by the weights of the models that agree.
        out: flat, and as long as all others.

    Returns:
        whether all results are finite.
    """
    array = (_Voter * len(voters))(
        *(
            _Voter(
                *(_place(voter.tensor), voter.weight, voter.scale, voter.limit, voter.below),
                (c_uint64 * 4)(*_words(*voter.generator)),
            )
            for voter in voters
        )
    )
    tiles = np.empty((len(voters), TILE))
    call = _loop("merge_elected")
    return bool(
        call(
            *(array, len(voters), _place(base), position, scaling_factor),
            *(by_count, normalize, _at(tiles), _place(out), out.numel()),
        )
    )


def _loop(name: str) -> Callable[..., Any]:
    loop: Callable[..., Any] = getattr(library(), name)
    return loop


def _place(stretch: Stretch) -> _Tensor:
    return _Tensor(_at(stretch.bits), KINDS[stretch.dtype])


def _located(stretches: Sequence[Stretch]) -> Any:
    return (_Tensor * len(stretches))(*map(_place, stretches))


def _optional(stretch: Stretch | None) -> Any:
    return None if stretch is None else byref(_place(stretch))


def _words(*numbers: int) -> list[int]:
    """Return 128-bit numbers as pairs of 64-bit ones, the low one first."""
    return [number >> shift & 2**64 - 1 for number in numbers for shift in (0, 64)]


def _at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
