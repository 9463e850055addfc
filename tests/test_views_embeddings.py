"""Rows gathered from several models: any range, any dtype, and what each kind of row is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streammerge.checkpoint import Checkpoint, as_read, open_checkpoint
from streammerge.tensors import TensorInfo, torch_dtype
from streammerge.views.embeddings import Realigned
from streammerge.views.gather import FILLER, MEAN, ZERO, Alignment
from tests.support.checkpoints import random_tensor, write_checkpoint
from tests.support.raw import DTYPE_CODES
from tests.support.views import assert_ranges_are_slices, read_bytes, read_tensor

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
NAME = "embed_tokens.weight"
NDArray = np.ndarray[tuple[int], np.dtype[np.int32]]


def models_of(root: Path, dtypes: list[torch.dtype], rows: int, columns: int) -> list[Checkpoint]:
    found: list[Checkpoint] = []
    for i, dtype in enumerate(dtypes):
        tensors = {"first": torch.ones(3), NAME: random_tensor((rows, columns), dtype, i)}
        found.append(open_checkpoint(write_checkpoint(root / f"m{i}", tensors)))
    return found


def aligned(sources: list[Checkpoint], models: NDArray, rows: NDArray, dtype: str) -> Realigned:
    own = sources[0].tensors[NAME]
    info = TensorInfo(NAME, dtype, (len(models), *own.shape[1:]))
    holders = [np.arange(len(models), dtype=np.int32) % (own.shape[0] + 1 - m) - 1 for m in (0, 1)]
    return Realigned(sources[0], {NAME: Alignment(info, models, rows, holders, sources)})


def expected_rows(view: Realigned, sources: list[Checkpoint]) -> torch.Tensor:
    """The same, row by row in float64."""
    alignment = view._alignments[NAME]
    whole = [read_tensor(s, NAME).double() for s in sources]
    out = torch.zeros(alignment.info.shape, dtype=F64)
    kinds = alignment.models.tolist()
    for n, (model, row) in enumerate(zip(kinds, alignment.rows.tolist(), strict=True)):
        if model >= 0:
            out[n] = whole[model][row]
        elif model == MEAN:
            held = [w[h[n]] for w, h in zip(whole, alignment.holders, strict=True) if h[n] >= 0]
            out[n] = sum(held) / len(held)
    others = [n for n, model in enumerate(kinds) if model != FILLER]
    rounded = out[others].to(torch_dtype(alignment.info.dtype)).double()
    for n, model in enumerate(kinds):
        if model == FILLER:
            out[n] = rounded.mean(0)
    return out


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    rows=st.integers(2, 300),
    columns=st.sampled_from([1, 3, 64, 1000]),
    kinds=st.sampled_from([(0,), (0, 1), (0, 1, ZERO), (0, 1, ZERO, MEAN, FILLER)]),
    dtypes=st.sampled_from([[BF16, BF16], [BF16, F32], [F16, BF16], [F32, F64]]),
)
def test_any_range_is_the_slice_and_each_row_what_it_should_be(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    rows: int,
    columns: int,
    kinds: tuple[int, ...],
    dtypes: list[torch.dtype],
) -> None:
    sources = models_of(tmp_path_factory.mktemp("x"), dtypes, rows, columns)
    draw = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    size = int(draw.integers(2, 400))
    models = draw.choice(kinds, size).astype(np.int32)
    models[0] = 0
    picked = draw.integers(0, rows, size) if draw.random() < 0.5 else np.arange(size) % rows
    picked = np.where(models >= 0, picked, 0).astype(np.int32)
    holders = [np.arange(size) % (rows + 1 - m) - 1 for m in (0, 1)]
    models[(models == MEAN) & (np.maximum(*holders) < 0)] = ZERO
    exact = set(models.tolist()) <= {0, ZERO} or len(set(dtypes)) == 1
    exact = exact and not {MEAN, FILLER} & set(models.tolist())
    wide = "F64" if F64 in dtypes and (models != 0).any() else "F32"
    view = aligned(sources, models, picked, DTYPE_CODES[dtypes[0]] if exact else wide)
    assert_ranges_are_slices(view, NAME, int(draw.integers(10**6)), count=12)
    found, expected = read_tensor(view, NAME).double(), expected_rows(view, sources)
    kept = torch.from_numpy(models >= ZERO)
    assert torch.equal(found[kept], expected[kept])
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_rows_in_one_piece_are_not_copied(tmp_path: Path) -> None:
    sources = models_of(tmp_path, [BF16], 100, 8)
    models = np.zeros(120, np.int32)
    models[100:] = ZERO
    view = aligned(sources, models, np.arange(120, dtype=np.int32) % 100, "BF16")
    place = view.locate(NAME)
    reader = view.open(place.file, "mmap")
    buffer = bytearray(10_000)
    taken = reader.fetch(16 * 20, 16 * 70, memoryview(buffer))
    assert not any(buffer), "the bytes were handed out where they lie"
    assert bytes(taken) == read_bytes(sources[0], NAME, 16 * 20, 16 * 70)
    assert any(reader.fetch(16 * 90, 16 * 20, memoryview(buffer)))
    assert any(buffer)


def test_the_identity_follows_every_row(tmp_path: Path) -> None:
    sources = models_of(tmp_path, [BF16, BF16], 10, 4)
    zeros, order = np.zeros(10, np.int32), np.arange(10, dtype=np.int32)
    seen = [aligned(sources, zeros, order, "BF16").identity()]
    seen.append(aligned(sources, zeros, order[::-1].copy(), "BF16").identity())
    other = zeros.copy()
    other[3] = 1
    seen.append(aligned(sources, other, order, "BF16").identity())
    seen.append(aligned(sources, zeros, order, "F32").identity())
    assert len({str(identity) for identity in seen}) == 4
    assert all(set(sources[0].identity()) < set(identity) for identity in seen)


def test_the_models_dtype_is_shown_and_the_wider_one_handed_out(tmp_path: Path) -> None:
    sources = models_of(tmp_path, [BF16, F32], 10, 4)
    ones = np.ones(10, np.int32)
    view = aligned(sources, ones, np.arange(10, dtype=np.int32), "F32")
    assert view.tensors[NAME].dtype == "BF16"
    assert as_read(view, NAME).dtype == "F32"
    assert torch.equal(read_tensor(view, NAME), read_tensor(sources[1], NAME))
