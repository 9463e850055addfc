"""The safetensors header: from untrusted bytes to tensors with offsets, and back.

A file is a u64 little-endian length, a JSON header of that length, and the data. The offsets must
cover the data without hole or overlap (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from streammerge.errors import (
    CheckpointError,
    HeaderError,
    UnsupportedError,
    is_unicode,
    printable,
)
from streammerge.formats.limits import refuse_depth, refuse_length
from streammerge.storage import Storage
from streammerge.tensors import DTYPES, TensorInfo

LENGTH_BYTES = 8
_MAX_DIMENSIONS = 64  # torch's own limit
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a tensor lie.

    Attributes:
        file: path in the checkpoint's storage.
        offset: first byte, counted from the start of the file.
        dtype: code of the bytes there, where they are computed as they are read and wider than
            the tensor's own dtype; "" for the tensor's own.
    """

    file: str
    offset: int
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        tensors: what the file holds, in the order of the data.
        locations: where each of them lies, by name.
        raw: the JSON bytes as they stand in the file; its digest identifies the file.
    """

    tensors: dict[str, TensorInfo]
    locations: dict[str, Location]
    raw: bytes


def read_header(storage: Storage, file: str) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        HeaderError: the header breaks the format or does not fit the file.
        UnsupportedError: the file is a git-LFS pointer.
    """
    size = storage.identity(file).size
    start = storage.read(file, 0, LENGTH_BYTES)
    if start == b"version ":
        raise UnsupportedError(
            f"{_where(storage, file)} is a git-LFS pointer, not the weights",
            "Run `git lfs pull` in the clone, or download the repository from the Hub again.",
        )
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or LENGTH_BYTES + length > size:
        raise HeaderError(
            f"{_where(storage, file)} is no safetensors file or is truncated: "
            f"a header of {length:,} bytes does not fit a file of {size:,} bytes",
            "Download or save it again.",
        )
    try:
        refuse_length("a header", length, size - LENGTH_BYTES - length)
        raw = storage.read(file, LENGTH_BYTES, length)
        tensors, offsets = parse_header(raw, size - LENGTH_BYTES - length)
    except HeaderError as error:
        raise HeaderError(
            f"{_where(storage, file)}: {error.message}", "Download or save the file again."
        ) from error
    base = LENGTH_BYTES + length
    locations = {name: Location(file, base + offset) for name, offset in offsets.items()}
    return Header(tensors, locations, raw)


def _where(storage: Storage, file: str) -> str:
    return printable(f"{storage.label}/{file}")


def parse_header(raw: bytes, data_size: int) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """Return the tensors of a JSON header in the order of their data, and their offsets in it.

    Args:
        raw: the JSON.
        data_size: bytes in the file after the header.

    Raises:
        HeaderError: anything that the format forbids.
    """
    header = _load_object(raw, "the header")
    spans = []
    for name, entry in header.items():
        if name != "__metadata__":
            spans.append((*_span(entry, name), _tensor(entry, name)))
    spans.sort(key=lambda span: (span[0], span[1]))  # empty tensors before what starts with them
    tensors, offsets, position = {}, {}, 0
    for begin, end, tensor in spans:
        if begin != position:
            problem = "overlaps what comes before it" if begin < position else "follows a hole"
            raise HeaderError(f"tensor {printable(tensor.name)!r} {problem} at byte {begin:,}")
        if end - begin != tensor.nbytes:
            raise HeaderError(
                f"tensor {printable(tensor.name)!r} of {tensor.dtype} {list(tensor.shape)} needs "
                f"{tensor.nbytes:,} bytes, its offsets give it {end - begin:,}"
            )
        position = end
        tensors[tensor.name], offsets[tensor.name] = tensor, begin
    if position != data_size:
        kind = "the file is truncated" if data_size < position else "bytes follow the last tensor"
        raise HeaderError(f"{kind}: {data_size:,} bytes of data, the header speaks of {position:,}")
    return tensors, offsets


def _span(entry: Any, name: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"tensor {printable(name)!r} has no valid data_offsets")
    return offsets[0], offsets[1]


def _tensor(entry: dict[str, Any], name: str) -> TensorInfo:
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise HeaderError(f"tensor {printable(name)!r} has unknown dtype {printable(repr(dtype))}")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise HeaderError(f"tensor {printable(name)!r} has no valid shape")
    return TensorInfo(name, dtype, tuple(shape))


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def load_json_object(raw: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in untrusted bytes, refusing what parsers disagree on.

    Raises:
        HeaderError: not UTF-8, not JSON, no object, NaN or Inf, half a surrogate pair, a key given
            twice, or nested too deep.
    """
    value = _load_object(raw, what)
    refuse_depth(value, what)
    if _SURROGATE.search(raw) and not is_unicode(json.dumps(value, ensure_ascii=False)):
        raise HeaderError(f"{what} has text that is not Unicode")
    return value


def _load_object(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode(),  # else json guesses, and takes UTF-16 and UTF-32 as well
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except HeaderError as error:
        raise HeaderError(f"{what} has {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{what} is not JSON ({printable(str(error), 80)})") from error
    if not isinstance(value, dict):
        raise HeaderError(f"{what} is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise HeaderError(f"the key {printable(twice)!r} twice")
    for key in result:
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError:
                raise HeaderError(f"a key that is not Unicode: {printable(key)!r}") from None
    return result


def _no_constant(name: str) -> Any:
    raise HeaderError(f"the number {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise HeaderError(f"the number {printable(text, 40)}")
    return number


def encode_header(tensors: Sequence[TensorInfo]) -> bytes:
    """Return length and header for tensors whose data follow in the given order without gaps.

    The bytes are those of `safetensors.torch.save_file(…, metadata={"format": "pt"})`, where the
    tensors come in the order of `tensors.layout_key`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        refuse_length("a header", len(text), offset)
    except HeaderError as error:
        raise CheckpointError(
            f"a shard of {len(tensors):,} tensors cannot be written: {error.message}",
            "Choose a smaller --max-shard-size.",
        ) from error
    return len(text).to_bytes(LENGTH_BYTES, "little") + text
