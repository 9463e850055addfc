"""Hostile or broken safetensors headers: refused by name before the first output byte."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.support.attacks import Trap, victim_data
from tests.support.raw import entry, write_raw

FILE = r"model\.safetensors"
GOOD_A = entry("F32", [2, 4], 0, 32)
GOOD_B = entry("F32", [4], 32, 48)


def with_b(**changes: Any) -> dict[str, Any]:
    """The victim's header with something changed in b.weight."""
    return {"a.weight": GOOD_A, "b.weight": {**GOOD_B, **changes}}


def bad_file(trap: Trap) -> Path:
    return trap.bad / "model.safetensors"


def test_the_header_without_changes_is_accepted(trap: Trap) -> None:
    import streammerge

    write_raw(bad_file(trap), with_b(), victim_data())
    streammerge.average([str(trap.good), str(trap.bad)], str(trap.out))
    assert (trap.out / "model.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"\x10\x00", b"\x08" + b"\x00" * 7], ids=len)
def test_file_shorter_than_its_header_length(trap: Trap, content: bytes) -> None:
    bad_file(trap).write_bytes(content)
    trap.refused(FILE)


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1, 10**9, 200])
def test_header_length_past_the_end_of_the_file(trap: Trap, length: int) -> None:
    write_raw(bad_file(trap), with_b(), victim_data(), length=length)
    trap.refused(FILE)


def test_header_length_of_zero(trap: Trap) -> None:
    write_raw(bad_file(trap), b"", b"")
    trap.refused(FILE)


def test_header_too_long_to_be_honest(trap: Trap) -> None:
    with bad_file(trap).open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(100_000_100)
    trap.refused(FILE, "header", "limit|too long")


def test_header_truncated_in_its_json(trap: Trap) -> None:
    text = json.dumps(with_b()).encode()
    bad_file(trap).write_bytes(struct.pack("<Q", len(text)) + text[:-20])
    trap.refused(FILE)


@pytest.mark.parametrize(
    "header",
    [
        b"not json at all!",
        b"[1, 2, 3]",
        b'"text"',
        b"null",
        b"{" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a.weight": ' * 5000 + b"1" + b"}" * 5000,
        b'{"\xff\xfe": 1}',
        b'{"a.weight": NaN}',
        b'{"a.weight": {}} {}',
        b'{"n": ' + b"9" * 10_000 + b"}",
        b"\x00" * 64,
    ],
    ids=lambda h: h[:12].decode("latin-1").replace("\x00", "0"),
)
def test_header_that_is_no_json_object(trap: Trap, header: bytes) -> None:
    write_raw(bad_file(trap), header, victim_data())
    trap.refused(FILE)


def test_duplicate_tensor_names(trap: Trap) -> None:
    a, b = json.dumps(GOOD_A), json.dumps(GOOD_B)
    header = f'{{"a.weight": {a}, "b.weight": {b}, "b.weight": {b}}}'
    write_raw(bad_file(trap), header.encode(), victim_data())
    trap.refused(FILE, r"b\.weight", "duplicate|twice|repeat|more than once")


@pytest.mark.parametrize(
    "value", [None, [], "F32", 7, {}, {"dtype": "F32"}, {"dtype": "F32", "shape": [4]}], ids=str
)
def test_tensor_entry_that_is_incomplete_or_no_object(trap: Trap, value: Any) -> None:
    write_raw(bad_file(trap), {"a.weight": GOOD_A, "b.weight": value}, victim_data())
    trap.refused(FILE, r"b\.weight")


@pytest.mark.parametrize("dtype", ["F99", "f32", "", "../F32", 7, None, ["F32"]], ids=str)
def test_unknown_dtype(trap: Trap, dtype: Any) -> None:
    write_raw(bad_file(trap), with_b(dtype=dtype), victim_data())
    trap.refused(FILE, r"b\.weight", "dtype")


@pytest.mark.parametrize(
    "shape",
    [[-4], [-2, -2], [4.0], ["4"], [True, 4], [None], 4, "4", None, [[4]], [2**62, 4], [2**200]],
    ids=str,
)
def test_shape_that_is_negative_no_integer_or_overflows(trap: Trap, shape: Any) -> None:
    write_raw(bad_file(trap), with_b(shape=shape), victim_data())
    trap.refused(FILE, r"b\.weight")


@pytest.mark.parametrize("shape", [[2**62, 4, 1], [2**32, 2**32], [5], [3], []], ids=str)
def test_size_that_disagrees_with_the_offsets(trap: Trap, shape: list[int]) -> None:
    write_raw(bad_file(trap), with_b(shape=shape), victim_data())
    trap.refused(FILE, r"b\.weight")


@pytest.mark.parametrize(
    "offsets",
    [
        [16, 32],
        [28, 44],
        [0, 16],
        [36, 52],
        [48, 32],
        [-16, 0],
        [32, 2**64 + 48],
        [2**64 + 32, 2**64 + 48],
        [2**63, 2**63 + 16],
        [32.0, 48.0],
        ["32", "48"],
        [True, 17],
        [32],
        [32, 48, 48],
        [],
        None,
        "32:48",
        {"start": 32, "end": 48},
    ],
    ids=str,
)
def test_offsets_that_overlap_leave_holes_overflow_or_are_no_pair(trap: Trap, offsets: Any) -> None:
    write_raw(bad_file(trap), with_b(data_offsets=offsets), victim_data())
    trap.refused(FILE, r"[ab]\.weight")


def test_hole_between_tensors(trap: Trap) -> None:
    write_raw(bad_file(trap), with_b(data_offsets=[36, 52]), victim_data() + bytes(4))
    trap.refused(FILE, r"[ab]\.weight")


def test_hole_before_the_first_tensor(trap: Trap) -> None:
    header = {"a.weight": entry("F32", [2, 4], 4, 36), "b.weight": entry("F32", [4], 36, 52)}
    write_raw(bad_file(trap), header, bytes(4) + victim_data())
    trap.refused(FILE)


def test_bytes_after_the_last_tensor(trap: Trap) -> None:
    write_raw(bad_file(trap), with_b(), victim_data() + b"extra")
    trap.refused(FILE)


@pytest.mark.parametrize("kept", [0, 10, 47])
def test_file_shorter_than_the_header_says(trap: Trap, kept: int) -> None:
    write_raw(bad_file(trap), with_b(), victim_data()[:kept])
    trap.refused(FILE, "short|truncat|incomplete|ends|size|bytes")


def test_two_tensors_over_the_same_bytes(trap: Trap) -> None:
    header = {"a.weight": entry("F32", [2, 4], 0, 32), "b.weight": entry("F32", [4], 0, 16)}
    write_raw(bad_file(trap), header, victim_data()[:32])
    trap.refused(FILE, r"[ab]\.weight")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_a_header_in_another_encoding(trap: Trap, encoding: str) -> None:
    """`json.loads` guesses the encoding of bytes; the format has one."""
    write_raw(bad_file(trap), json.dumps(with_b()).encode(encoding), victim_data())
    trap.refused(FILE, "not JSON")


@pytest.mark.parametrize("name", ["a\x00b", "a\nb", "a\x1b[31mb", "a\rb", "a\u202eb"], ids=ascii)
def test_control_characters_in_a_tensor_name_are_never_printed_raw(trap: Trap, name: str) -> None:
    write_raw(bad_file(trap), {name: entry("F32", [12], 0, 48)}, victim_data())
    message = trap.refused("not in|missing|extra")
    assert name not in message
    assert not set(name) & set(message) & {"\x00", "\r", "\x1b", "\u202e"}


def test_a_name_that_is_half_a_character(trap: Trap) -> None:
    header = b'{"a\\ud800":{"dtype":"F32","shape":[12],"data_offsets":[0,48]}}'
    write_raw(bad_file(trap), header, victim_data())
    trap.refused(FILE)
