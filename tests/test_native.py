"""The compiled loops give the bits that torch gives by the same steps, and exact arithmetic."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streammerge import native
from streammerge.methods import electing
from streammerge.methods.averaging import Terms, sum_terms
from streammerge.methods.electing import Rules, Voter, merge_elected
from streammerge.methods.gram import products
from streammerge.methods.place import Place
from streammerge.methods.ranks import Ranks
from streammerge.methods.workspace import Workspace
from streammerge.stretch import Stretch
from tests.support.checkpoints import random_tensors, write_checkpoint
from tests.support.cli import in_process

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
DTYPES = (BF16, FP16, FP32, FP64)
ELECTED = [*((dtype, dtype) for dtype in DTYPES), (FP32, BF16), (BF16, FP32)]
LENGTHS = (1, 256, 1000)
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

compiled = pytest.mark.skipif(
    native.library() is None, reason="no C compiler was there when the package was installed"
)


def stretches(*tensors: Tensor) -> list[Stretch]:
    """What the compiled loops work on; torch works on the tensors."""
    return [Stretch.of_tensor(tensor) for tensor in tensors]


def anything(numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits: also NaN, Inf, subnormal numbers and zeros of both signs."""
    generator = np.random.default_rng(seed)
    raw = generator.bytes(numel * dtype.itemsize)
    tensor = torch.frombuffer(bytearray(raw), dtype=dtype).clone()
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, torch.finfo(dtype).max]
    special += [torch.finfo(dtype).smallest_normal, torch.finfo(dtype).smallest_normal / 4]
    for value in special[:numel]:
        tensor[generator.integers(numel)] = value
    return tensor


def ordinary(numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers as in a model, with values that recur, so that sums are ties often."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(0, 0.02, numel)).to(dtype)
    values[::7] = values[0]
    return values


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit by bit; a NaN equals any other."""
    nan = one.isnan() & other.isnan()
    integer = BITS[one.dtype.itemsize]
    return bool(((one.view(integer) == other.view(integer)) | nan).all())


@compiled
@pytest.mark.parametrize("make", [ordinary, anything])
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_weighted_sums(make: Any, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    source, result = dtypes
    for numel, count in itertools.product(LENGTHS, (1, 2, 3, 5)):
        tensors = [make(numel, source, seed) for seed in range(count)]
        shares = (0.3, 1 / 3, -0.123456789, 2.0, 1.0)[:count]
        in_fp32 = source is result and source.itemsize == 2
        for terms in (
            Terms((5.0, 3.0, 2.0, 1.0, 7.0)[:count], 18.0, in_fp32),
            Terms((1.0,) * count, float(count), in_fp32),
            Terms(shares),
        ):
            out, expected = torch.empty(numel, dtype=result), torch.empty(numel, dtype=result)
            *inputs, result_stretch = stretches(*tensors, out)
            finite = sum_terms(inputs, result_stretch, Workspace(), terms)
            wanted = sum_terms(tensors, expected, Workspace(), terms)
            assert finite == wanted == bool(expected.isfinite().all())
            assert same_bits(out, expected), (numel, count, terms)


@compiled
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_every_number_comes_back(dtype: torch.dtype) -> None:
    codes = torch.arange(2**16).to(torch.int32)
    if dtype is FP32:
        codes = codes * 65_521 + 12_345
    tensor = (codes if dtype is FP32 else codes.to(torch.int16)).view(dtype)
    for wide in DTYPES[DTYPES.index(dtype) :]:
        if (dtype, wide) == (BF16, FP16):
            continue
        there, back = torch.empty(tensor.numel(), dtype=wide), torch.empty_like(tensor)
        source, wider, again = stretches(tensor, there, back)
        native.weighted_sum([source], [1.0], 1.0, False, wider)
        native.weighted_sum([wider], [1.0], 1.0, False, again)
        assert same_bits(there, tensor.to(wide))
        assert same_bits(back, tensor)


@compiled
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_rounding_beside_every_midpoint(dtype: torch.dtype) -> None:
    """On each midpoint of two neighbours, and as little to each side as fp64 can tell."""
    finite = torch.arange(0x7F7F if dtype is BF16 else 0x7BFF).to(torch.int16).view(dtype).double()
    above = torch.arange(1, len(finite) + 1).to(torch.int16).view(dtype).double()
    midpoints = (finite + above) / 2
    apart = [midpoints, *(torch.nextafter(midpoints, way) for way in (finite, above))]
    values = torch.cat([*apart, *(-part for part in apart)])
    even = torch.where(torch.arange(len(finite)) % 2 == 0, finite, above)
    expected = torch.cat([even, finite, above, -even, -finite, -above]).to(dtype)
    out = torch.empty(len(values), dtype=dtype)
    assert native.weighted_sum(stretches(values), [1.0], 1.0, False, Stretch.of_tensor(out))
    assert same_bits(out, expected)


@compiled
def test_a_sum_that_overflows_fp32_has_a_finite_mean() -> None:
    tensor = torch.full((3000,), torch.finfo(BF16).max, dtype=BF16)
    out = torch.empty_like(tensor)
    inputs = stretches(tensor) * 3
    assert native.weighted_sum(inputs, [1.0] * 3, 3.0, True, Stretch.of_tensor(out))
    assert out.equal(tensor)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("from_base", [False, True])
def test_inner_products(dtype: torch.dtype, from_base: bool) -> None:
    for numel, count in itertools.product(LENGTHS, (1, 2, 4)):
        vectors = [ordinary(numel, dtype, seed) for seed in range(count)]
        base = ordinary(numel, FP32, 9) if from_base else None
        origin = None if base is None else Stretch.of_tensor(base)
        found = products(stretches(*vectors), origin)
        assert found == products(vectors, base)
        exact = [[Fraction(float(x)) for x in vector.double()] for vector in vectors]
        start = [Fraction(float(x)) for x in base] if base is not None else [Fraction(0)] * numel
        pairs = list(itertools.combinations_with_replacement(exact, 2))
        for value, (a, b) in zip(found, pairs, strict=True):
            terms = [(x - o) * (y - o) for x, y, o in zip(a, b, start, strict=True)]
            bound = float(sum(map(abs, terms))) * numel * 2.0**-52
            assert abs(value - float(sum(terms))) <= bound


@compiled
def test_inner_products_count_only_what_is_finite() -> None:
    vectors = [anything(5000, BF16, seed) for seed in range(3)]
    found = products(stretches(*vectors), None)
    assert all(map(math.isfinite, found))
    assert found == products(vectors, None)


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [ordinary, anything])
def test_keys(make: Any, dtype: torch.dtype) -> None:
    tensor, base = make(5000, dtype, 1), make(5000, dtype, 2)
    magnitudes = (tensor.double() - base.double()).abs()
    infinity = int(torch.tensor(math.inf).double().view(torch.int64))
    keys = magnitudes.view(torch.int64).sort().values.clamp(max=infinity + 1)  # any NaN
    for low, high in ((0, 2**63 - 1), (int(keys[100]), int(keys[4000])), (1, 0), (0, 0)):
        above, inside, counts = native.keys_between(*stretches(tensor, base), low, high)
        assert above == int((keys > high).sum())
        every = np.repeat(inside, counts)
        found = sorted(min(int(key), infinity + 1) for key in every)
        assert found == [int(key) for key in keys if low <= key <= high]


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thresholds(dtype: torch.dtype) -> None:
    numel = 200_000
    tensors, base = [ordinary(numel, dtype, seed) for seed in (1, 2)], ordinary(numel, dtype, 3)
    wanted = [(0, 1), (0, 40_000), (1, 123_456), (1, numel)]

    def thresholds(inputs: Sequence[Any]) -> list[float]:
        ranks = Ranks(wanted, numel)
        while True:
            for start in range(0, numel, 65_536):
                block = slice(start, min(start + 65_536, numel))
                parts = [t[block][:: ranks.every] for t in inputs]
                place = Place("t", (numel,), start, block.stop - start)
                ranks.add(ranks.observe(parts[:2], parts[2], place))
            if not ranks.another_round():
                return ranks.values

    found = thresholds(stretches(*tensors, base))
    assert found == thresholds([*tensors, base])
    for (vector, rank), value in zip(wanted, found, strict=True):
        magnitudes = (tensors[vector].double() - base.double()).abs()
        assert value == float(magnitudes.sort(descending=True).values[rank - 1])


@compiled
@pytest.mark.parametrize("dtypes", ELECTED, ids=str)
@pytest.mark.parametrize("election", ["total", "frequency"])
@pytest.mark.parametrize("make", [ordinary, anything])
def test_elections(
    make: Any,
    dtypes: tuple[torch.dtype, torch.dtype],
    election: electing.Election,
) -> None:
    source, result = dtypes
    cases = itertools.product(LENGTHS, (1, 2, 5), (False, True), (1.0, 0.7))
    for numel, count, normalize, scaling in cases:
        base = make(numel, source, 99)
        limits, chances = (0.01, 0.0, math.nan, 0.02, math.inf), (1.0, 0.5, 0.3, 1.0, 1.0)
        tensors = [make(numel, source, i) for i in range(count)]
        weights = (1.0, 0.5, -0.25, 0.3, 1.0)
        rules = Rules(election, normalize, scaling, seed=3)
        place = Place("a", (numel + 4099,), 4099, numel)

        def run(models: Sequence[Any], start: Any, out: Any) -> bool:
            voters = [
                Voter(model, weights[i], 1 + i, limits[i], chances[i], i)  # noqa: B023
                for i, model in enumerate(models)
            ]
            return merge_elected(voters, start, place, rules, out, Workspace())  # noqa: B023

        out, expected = torch.empty(numel, dtype=result), torch.empty(numel, dtype=result)
        finite = run(stretches(*tensors), *stretches(base, out))
        wanted = run(tensors, base, expected)
        assert finite == wanted == bool(expected.isfinite().all())
        assert same_bits(out, expected), (numel, count, normalize, scaling)


def test_both_languages_have_the_same_constants() -> None:
    source = Path(native.__file__).with_name("kernels.c").read_text()
    found = {name: int(value) for name, value in re.findall(r"(\w+) = (\d+) }", source)}
    assert (found["TILE"], 2 ** found["SLOT_BITS"]) == (native.TILE, native.SLOTS)
    kinds = re.search(r"enum \{ (\w+), (\w+), (\w+), (\w+) \};", source)
    assert kinds is not None
    names = {"BF16": "BF16", "F16": "FP16", "F32": "FP32", "F64": "FP64"}
    assert {kinds[number + 1] for number in range(4)} == set(names.values())
    assert all(kinds[number + 1] == names[code] for code, number in native.KINDS.items())


@compiled
def test_places_that_are_not_aligned() -> None:
    for dtype, offset in itertools.product(DTYPES, (2, 4, 6, 8)):
        raw = bytearray(8 + 3000 * dtype.itemsize)
        view = torch.frombuffer(raw, dtype=dtype, offset=offset, count=3000)
        view.copy_(ordinary(3000, dtype, 1))
        out = torch.empty_like(view)
        inputs = stretches(view, view)
        in_fp32 = dtype.itemsize == 2
        native.weighted_sum(inputs, [1.0, 1.0], 2.0, in_fp32, Stretch.of_tensor(out))
        assert out.equal(view.clone())


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package that can be changed."""
    source = Path(native.__file__).parent
    return shutil.copytree(source, tmp_path / "native")


@compiled
def test_a_library_of_other_code_is_not_used(package: Path) -> None:
    assert native.load(package) is not None
    with (package / "kernels.c").open("a") as source:
        source.write("/* changed since */\n")
    assert native.load(package) is None


def test_without_a_library_torch_does_it(package: Path) -> None:
    (package / "kernels.so").unlink(missing_ok=True)
    assert native.load(package) is None
    (package / "kernels.so").write_bytes(b"not a library")
    assert native.load(package) is None


@compiled
def test_a_plan_says_that_there_are_no_compiled_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [write_checkpoint(tmp_path / name, random_tensors(1)) for name in ("a", "b")]
    out = tmp_path / "out"
    monkeypatch.setattr(native, "library", lambda: None)
    without = json.loads(in_process(capsys, "average", *models, "-o", out, "--json").out)
    assert without["out"] == str(out)
    said = in_process(capsys, "plan", *models, "-o", tmp_path / "other").out
    assert "no C compiler" in said
    monkeypatch.undo()
    assert "no C compiler" not in in_process(capsys, "plan", *models, "-o", tmp_path / "x").out
