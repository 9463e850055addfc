"""Good files made bad, as hypothesis strategies: bytes changed here and there, or JSON values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.fuzzing.targets import Target

TOKENS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"'", b"#", b"- ", b"\n", b"\t", b"&b"),
    *(b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é".encode(), "😀".encode()),
    *(b"..", b"../x", b"/etc/passwd", b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-0"),
    *(b"-1", b"0.5", b"1e3", b"9" * 40, b"9" * 5000, str(2**63).encode(), str(2**64).encode()),
    *(b"\\ud800", b"\\udc00x", b"\\u0000", b'"dtype"', b'"F64"', b'"F4"', b'"shape"', b"*b"),
    *(b"[" * 150, b'{"a":' * 150, b"[" * 3000, b"<<: *b", b"? ", b"|", b">", b"!!python/x"),
    b"%YAML 1.1\n---\n",
)
_Edit = tuple[str, int, int, int]


def _edits() -> st.SearchStrategy[_Edit]:
    kinds = st.sampled_from(("set", "insert", "insert", "delete", "copy", "cut"))
    return st.tuples(
        kinds, st.integers(0, 2**16), st.integers(0, 2**16), st.integers(0, len(TOKENS) - 1)
    )


def _edited(seed: bytes, edits: list[_Edit]) -> bytes:
    data = bytearray(seed)
    for kind, where, amount, token in edits:
        at = where % (len(data) + 1)
        length = 1 + amount % 64
        if kind == "set":
            data[at : at + 1] = bytes([amount % 256])
        elif kind == "insert":
            data[at:at] = TOKENS[token]
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "copy":
            data[at:at] = data[amount % (len(data) + 1) :][:length]
        else:
            del data[at:]
    return bytes(data)


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0, -1, 2**31, 2**63 - 1, 2**63, 2**64, 10**40, 0.5, 1e300, -0.0))
    | st.text(max_size=8)
    | st.sampled_from(("..", "../x.safetensors", "/x", "a\0b", "a\nb", "", "F32", "BF16", "\udc80"))
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


@st.composite
def _replaced(draw: st.DrawFn, target: Target) -> bytes:
    """The target's JSON with one to three values replaced, taken out, or under another name."""
    content = copy.deepcopy(target.content)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(content))
        if not found:
            break
        *above, last = draw(st.sampled_from(found))
        holder: Any = content
        for key in above:
            holder = holder[key]
        action = draw(st.sampled_from(("replace", "replace", "drop", "rename")))
        if action == "replace":
            holder[last] = draw(VALUES)
        elif action == "rename" and isinstance(holder, dict):
            holder[draw(st.text(max_size=8) | st.just("a\0b/../c"))] = holder.pop(last)
        else:
            del holder[last]
    return target.build(content)


def hostile(target: Target) -> st.SearchStrategy[bytes]:
    """Bytes that a target may be given."""
    edited = st.lists(_edits(), min_size=1, max_size=6).map(lambda e: _edited(target.seed, e))
    if target.content is None:
        return edited
    both = st.tuples(_replaced(target), st.lists(_edits(), max_size=2)).map(lambda x: _edited(*x))
    return edited | _replaced(target) | both
