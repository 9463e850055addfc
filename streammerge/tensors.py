"""What is known of a tensor without its data: name, dtype, shape; and sizes for people.

Dtypes go by their safetensors code ("BF16"), so that planning needs no torch; `torch_dtype`
turns a code into a torch dtype where arithmetic begins, and is the only place that imports it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from streammerge.errors import RecipeError

if TYPE_CHECKING:
    import torch

Kind = Literal["float", "complex", "integer", "quantized"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type of the safetensors format.

    Attributes:
        code: the name in a safetensors header.
        torch_name: the attribute of the torch module; "" where torch has none.
        bits: bits of one element.
        kind: what merging does with it. Quantized codes mean nothing without their scales.
    """

    code: str
    torch_name: str
    bits: int
    kind: Kind

    @property
    def itemsize(self) -> int:
        """Bytes of one element; sub-byte types only occur packed and are refused on opening."""
        return max(1, self.bits // 8)


# In the order of the safetensors `Dtype` enum: `save_file` lays tensors out by this order reversed,
# then by name (safetensors 0.8, `safetensors/src/tensor.rs`).
_TABLE = (
    DType("BOOL", "bool", 8, "integer"),
    DType("F4", "", 4, "quantized"),
    DType("F6_E2M3", "", 6, "quantized"),
    DType("F6_E3M2", "", 6, "quantized"),
    DType("U8", "uint8", 8, "integer"),
    DType("I8", "int8", 8, "integer"),
    DType("F8_E5M2", "float8_e5m2", 8, "quantized"),
    DType("F8_E4M3", "float8_e4m3fn", 8, "quantized"),
    DType("F8_E8M0", "float8_e8m0fnu", 8, "quantized"),
    DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, "quantized"),
    DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, "quantized"),
    DType("I16", "int16", 16, "integer"),
    DType("U16", "uint16", 16, "integer"),
    DType("F16", "float16", 16, "float"),
    DType("BF16", "bfloat16", 16, "float"),
    DType("I32", "int32", 32, "integer"),
    DType("U32", "uint32", 32, "integer"),
    DType("F32", "float32", 32, "float"),
    DType("C64", "complex64", 64, "complex"),
    DType("F64", "float64", 64, "float"),
    DType("I64", "int64", 64, "integer"),
    DType("U64", "uint64", 64, "integer"),
)
DTYPES: dict[str, DType] = {dtype.code: dtype for dtype in _TABLE}
DTYPE_ORDER: dict[str, int] = {dtype.code: rank for rank, dtype in enumerate(_TABLE)}
FLOAT_CODES: dict[str, str] = {d.torch_name: d.code for d in _TABLE if d.kind == "float"}


def torch_dtype(code: str) -> torch.dtype:
    """Return the torch dtype of a safetensors code."""
    import torch  # the one lazy import: plans are made without it

    dtype: torch.dtype = getattr(torch, DTYPES[code].torch_name)
    return dtype


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, dtype code and shape of a tensor.

    Attributes:
        name: key in the state dict.
        dtype: safetensors code, a key of `DTYPES`.
        shape: sizes; empty for a scalar.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> Kind:
        """What merging does with this tensor's dtype."""
        return DTYPES[self.dtype].kind

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return (self.numel * DTYPES[self.dtype].bits + 7) // 8


def layout_key(tensor: TensorInfo) -> tuple[int, str]:
    """Return the key by which `safetensors.torch.save_file` orders tensors in a file."""
    return -DTYPE_ORDER[tensor.dtype], tensor.name


_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _UNITS[f"{_letter}B"] = _UNITS[_letter] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str | int) -> int:
    """Return the bytes in a size such as 512MiB, 5GB, 1.5 GiB or 1000 (bytes).

    Raises:
        RecipeError: the text is not a positive size.
    """
    found = _SIZE.fullmatch(str(text))
    unit = _UNITS.get(found[2].upper()) if found else None
    size = int(Fraction(found[1]) * unit) if found and unit else 0
    if size <= 0:
        raise RecipeError(
            f"{text!r} is not a size", "Write a number and a unit, e.g. 512MiB, 2GiB or 5GB."
        )
    return size


def format_size(nbytes: float, binary: bool = False) -> str:
    """Return bytes for people: 4.54 GB, or with `binary` 512 MiB."""
    step, suffix = (1024, "iB") if binary else (1000, "B")
    value, letter = float(nbytes), ""
    for candidate in "KMGTP":
        if value < step:
            break
        value, letter = value / step, candidate
    digits = f"{value:.0f}" if not letter or value >= 100 else f"{value:.3g}"
    return f"{digits} {letter}{suffix}" if letter else f"{digits} B"
