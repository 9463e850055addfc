"""A tensor of any layout as bytes: what is read and written is its elements in row-major order."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streammerge.inmemory.tensorbytes import TensorBytes
from tests.support.checkpoints import random_tensor

Layout = Callable[[Tensor], Tensor]
# From a contiguous tensor of 4 × 6 × 5 × 2 to one of another layout.
LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda t: t,
    "scalar": lambda t: t[1, 2, 3, 1],
    "transposed": lambda t: t.reshape(24, 10).t(),
    "permuted": lambda t: t.permute(3, 1, 0, 2),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every second": lambda t: t[::2, :, 1::2],
    "one long row": lambda t: t.reshape(1, 240)[:, ::3],
    "a window of a larger tensor": lambda t: t[1:3, 2:5],
}
SHARED: dict[str, Layout] = {"expanded": lambda t: t[:1, :1].expand(7, 3, 5, 2)}


def bytes_of(tensor: Tensor) -> bytes:
    """The independent reference: torch makes the tensor contiguous, numpy says its bytes."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stretches(nbytes: int, itemsize: int) -> list[tuple[int, int]]:
    """Random stretches of whole elements: first byte and length."""
    draw, numel = random.Random(0), nbytes // itemsize
    pairs = [sorted((draw.randint(0, numel), draw.randint(0, numel))) for _ in range(40)]
    cuts = [(0, numel), (0, 1), (numel - 1, numel), *((a, b) for a, b in pairs if a < b)]
    return [(a * itemsize, (b - a) * itemsize) for a, b in cuts]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS | SHARED)
def test_any_stretch_of_any_layout_is_read(layout: str, dtype: torch.dtype) -> None:
    tensor = (LAYOUTS | SHARED)[layout](random_tensor((4, 6, 5, 2), dtype, 1))
    expected, reader = bytes_of(tensor), TensorBytes(tensor)
    assert reader.nbytes == len(expected)
    for offset, length in stretches(len(expected), dtype.itemsize):
        buffer = memoryview(bytearray(length + 8))
        assert reader.fetch(offset, length, buffer) == expected[offset : offset + length]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_stretches_written_in_any_order_fill_any_layout(layout: str, dtype: torch.dtype) -> None:
    owner = random_tensor((4, 6, 5, 2), dtype, 1)
    target = LAYOUTS[layout](owner)
    before, inside = owner.clone(), torch.zeros(owner.shape, dtype=torch.bool)
    LAYOUTS[layout](inside).fill_(True)
    wanted = random_tensor(target.shape, dtype, 2)
    data = bytes_of(wanted)
    cuts = sorted(random.Random(1).sample(range(target.numel()), min(9, target.numel())))
    spans = list(zip([0, *cuts], [*cuts, target.numel()], strict=True))
    random.Random(2).shuffle(spans)
    for first, after in ((a * dtype.itemsize, b * dtype.itemsize) for a, b in spans if a < b):
        TensorBytes(target).store(first, memoryview(bytearray(data[first:after])))
    assert torch.equal(target, wanted)
    if layout != "channels last":  # which is a copy
        assert torch.equal(owner[~inside], before[~inside])


def test_contiguous_memory_is_read_in_place() -> None:
    tensor = torch.arange(10.0)
    view = TensorBytes(tensor).fetch(8, 16, memoryview(bytearray(64)))
    tensor.add_(1)
    assert bytes(view) == bytes_of(tensor[2:6])


@pytest.mark.parametrize("bit", ["conj", "neg"])
def test_an_operation_that_waits_as_a_bit_is_carried_out(bit: str) -> None:
    numbers = torch.randn(6, 2, dtype=torch.complex64)
    lazy = numbers.conj() if bit == "conj" else numbers.conj().imag
    assert lazy.is_conj() or lazy.is_neg()
    reader = TensorBytes(lazy)
    expected = bytes_of(lazy.resolve_conj().resolve_neg())
    assert reader.fetch(0, len(expected), memoryview(bytearray(len(expected)))) == expected


def test_tensors_without_elements_have_no_bytes() -> None:
    for shape in ((0,), (3, 0, 5)):
        assert TensorBytes(torch.empty(shape)).nbytes == 0
