"""Writes safetensors files byte by byte, so that a test can also write one that is wrong.

Nothing here uses the safetensors library: the layout is an 8-byte little-endian header length,
a JSON header, and the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Header = dict[str, Any]

DTYPE_CODES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """The tensor's elements in row order, little-endian."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def entry(dtype: str, shape: Sequence[Any], start: Any, end: Any) -> Header:
    """One tensor's line in the header; anything goes, so that it may lie."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def write_raw(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> Path:
    """Write a file from a header (JSON or raw bytes), data, and a header length that may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def write_in_order(path: Path, tensors: Mapping[str, torch.Tensor], order: Sequence[str]) -> Path:
    """Write a valid file whose tensors lie in the given order, which save_file never would."""
    header: Header = {"__metadata__": {"format": "pt"}}
    chunks, end = [], 0
    for name in order:
        chunk = tensor_bytes(tensors[name])
        code = DTYPE_CODES[tensors[name].dtype]
        header[name] = entry(code, tensors[name].shape, end, end + len(chunk))
        chunks.append(chunk)
        end += len(chunk)
    return write_raw(path, header, b"".join(chunks))
