"""What every merge method promises; a method joins by being registered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import streammerge.chunks
import streammerge.methods.ranks
from streammerge.methods import METHODS
from tests.support.method_cases import MATRIX, SHAPES, Case, cases

CASES = list(cases())
EACH = pytest.mark.parametrize("case", CASES, ids=str)
DEFAULTS = [case for case in CASES if case.kind == "defaults"]
MANY = list({(c.method, c.models, c.base): c for c in CASES if c.kind != "switched"}.values())
ONE_OF_EACH = list({c.method: c for c in sorted(CASES, key=lambda c: c.kind == "numbers")}.values())

ADDS_UP = "adds the changes of all models up, so that equal ones count as often as there are models"
OTHER_THAN_ITS_MODELS: dict[str, str] = {
    "task_arithmetic": ADDS_UP,
    "dare_linear": ADDS_UP,
    "dare_ties": ADDS_UP,
    "della_linear": ADDS_UP,
    "breadcrumbs": ADDS_UP,
    "breadcrumbs_ties": ADDS_UP,
    "expo": "goes beyond the model",
    "slerp": "the base model is the other end",
    "nearswap": "moves by a little only",
    "ram": "leaves the smallest changes out",
    "ramplus_tl": "enlarges the changes that one model alone made",
    "arcee_fusion": "takes some changes only",
    "karcher": "the base model is one of the models",
    "iso_c": "makes all singular values of a matrix equal",
    "iso_cts": "makes all singular values of a matrix equal",
    "tsv_m": "keeps the largest singular values of a matrix only",
}
"""Methods whose result differs from models that are all equal, and why."""

HIDES: dict[str, str] = {"nearswap": "moves by at most t, however far away the other model is"}
"""Methods that can make a number of an infinite element, and why."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute as the pipeline's threads do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Cut small tensors as large ones are cut, and let a sample be smaller than its tensor."""
    if "full_chunks" not in request.keywords:
        monkeypatch.setattr(streammerge.chunks, "CHUNK", 64)
        monkeypatch.setattr(streammerge.methods.ranks, "SAMPLE", 16)


def same(a: Tensor, b: Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and bytes_of(a) == bytes_of(b)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@EACH
def test_the_blocks_make_no_difference(case: Case) -> None:
    for shape in SHAPES:
        tensors, base = case.inputs(shape)
        whole = case.run(tensors, base)
        assert whole.shape == shape
        for stretch in (23, 128):
            assert same(case.run(tensors, base, stretch=stretch), whole), (shape, stretch)


@EACH
def test_empty_tensors_stay_empty(case: Case) -> None:
    for shape in ((0,), (0, 5), (3, 0, 2)):
        tensors, base = case.inputs(shape)
        assert case.run(tensors, base).shape == shape


@pytest.mark.parametrize("case", [c for c in DEFAULTS if c.base], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_models_that_equal_the_base_model_change_nothing(case: Case, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        (tensor, *_), _ = case.inputs(shape, dtype)
        merged = case.run([tensor.clone() for _ in range(case.models)], tensor)
        torch.testing.assert_close(merged, tensor, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("case", DEFAULTS, ids=str)
def test_models_that_are_all_equal_are_the_result(case: Case) -> None:
    if case.base and case.method in OTHER_THAN_ITS_MODELS:
        pytest.skip(OTHER_THAN_ITS_MODELS[case.method])
    for shape in SHAPES:
        (tensor, *_), base = case.inputs(shape)
        merged = case.run([tensor.clone() for _ in range(case.models)], base)
        torch.testing.assert_close(merged, tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_inputs_are_not_written_to(case: Case) -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        tensors, base = case.inputs(MATRIX, dtype)
        before = [bytes_of(t) for t in (*tensors, *([base] if base is not None else []))]
        case.run(tensors, base)
        after = [bytes_of(t) for t in (*tensors, *([base] if base is not None else []))]
        assert before == after


@EACH
def test_fp32_comes_near_fp64(case: Case) -> None:
    tensors, base = case.inputs(MATRIX, torch.bfloat16)
    single = case.run(tensors, base, out_dtype=torch.float64)
    double = case.run(tensors, base, out_dtype=torch.float64, compute="F64")
    far = (single - double).abs() > 1e-5 * double.abs() + 1e-7
    # A threshold or an equal vote can fall on the other side of an element or two.
    assert int(far.sum()) <= 2, f"{int(far.sum())} elements differ"


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_result_is_rounded_once_to_any_dtype(case: Case, dtype: torch.dtype) -> None:
    tensors, base = case.inputs(MATRIX, torch.float16)
    wide = case.run(tensors, base, out_dtype=torch.float64, compute="F64")
    merged = case.run(tensors, base, out_dtype=dtype, compute="F64")
    assert merged.dtype == dtype
    error = (merged.double() - wide).abs()
    assert bool((error <= wide.abs() * torch.finfo(dtype).eps / 2 + 2.0**-25).all())


@pytest.mark.full_chunks
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=str)
def test_neither_threads_nor_random_state_make_a_difference(case: Case) -> None:
    # The sums of longer vectors are split between torch's threads, and products of large matrices.
    shape = (130, 140) if case.granularity(MATRIX) == "tensor" else (1, 33_000)
    tensors, base = case.inputs(shape, torch.bfloat16)
    results, states = [], []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(count)
        before = random_state()
        results.append(case.run(tensors, base))
        states.append(random_state() == before)
    assert same(*results)
    assert all(states), "random state that is not the method's own was used"


def random_state() -> tuple[bytes, bytes]:
    """The state of torch's and of numpy's global generator."""
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes()


@pytest.mark.parametrize("case", MANY, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")], ids=str)
@pytest.mark.parametrize("which", [0, -1], ids=["model", "base or last model"])
def test_nan_and_infinity_are_passed_on_and_stay_where_they_are(
    case: Case, bad: float, which: int
) -> None:
    method = METHODS.get(case.method)
    tensors, base = case.inputs(MATRIX)
    clean = case.run([t.clone() for t in tensors], base)
    sources = [*tensors, *([base] if base is not None else [])]
    sources[which][12, 5] = bad
    merged = case.run(tensors, base)
    if case.method not in HIDES:
        assert not bool(merged[12, 5].isfinite())
    elsewhere = torch.ones(merged.shape, dtype=torch.bool)
    elsewhere[12, 5] = False
    assert bool(merged[elsewhere].isfinite().all())
    if method.measure is None and case.granularity(MATRIX) == "element":
        assert same(merged[elsewhere], clean[elsewhere])


RANDOM = [case for case in CASES if "seed" in METHODS.get(case.method).parameters]


@pytest.mark.parametrize("case", [c for c in RANDOM if c.kind == "numbers"], ids=str)
def test_random_numbers_follow_seed_name_and_model(case: Case) -> None:
    tensors, base = case.inputs(MATRIX)
    first = case.run(tensors, base, tensor_name="a")
    assert same(first, case.run(tensors, base, tensor_name="a"))
    assert not same(first, case.run(tensors, base, tensor_name="b"))
    other = Case(case.method, case.models, case.base, "", {**case.settings, "seed": 123})
    assert not same(first, other.run(tensors, base, tensor_name="a"))
