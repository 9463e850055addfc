"""Adapters applied while reading: the formula, any range, any budget; and what is refused."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from streammerge.budget import make_layout
from streammerge.checkpoint import as_read, open_checkpoint
from streammerge.formats.folder import SafetensorsCheckpoint
from streammerge.planning import make_plan
from streammerge.recipe import average_recipe
from streammerge.references import parse_reference
from streammerge.storage.local import LocalStorage
from streammerge.views.lora import LoraApplied
from tests.support.adapters import applied, factors, write_adapter
from tests.support.checkpoints import (
    Tensors,
    add_side_files,
    random_tensor,
    read_checkpoint,
    write_checkpoint,
)
from tests.support.merging import refusal
from tests.support.outputs import read_json
from tests.support.reference import ulps_apart
from tests.support.views import assert_ranges_are_slices, merge_views, read_tensor

BF16 = torch.bfloat16


def base_tensors(dtype: torch.dtype = BF16) -> Tensors:
    shapes = {
        "embed_tokens.weight": (96, 40),
        "layers.0.q.weight": (72, 40),
        "layers.0.q.bias": (72,),
        "layers.1.q.weight": (40, 40),
        "layers.1.norm.weight": (40,),
        "conv.weight": (24, 6, 3, 3),
        "lm_head.weight": (96, 40),
    }
    return {n: random_tensor(s, dtype, i) for i, (n, s) in enumerate(shapes.items())}


def write_base(folder: Path, **options: Any) -> Path:
    return write_checkpoint(folder, base_tensors(), **options)


def view(base: Path, adapter: Path) -> LoraApplied:
    return LoraApplied(open_checkpoint(base), LocalStorage(adapter))


def assert_applied(found: torch.Tensor, expected: torch.Tensor) -> None:
    """What is handed out is the exact sum rounded to fp32, but for the last bit of fp64."""
    assert found.dtype == torch.float32
    assert ulps_apart(found, expected.float()) <= 1
    assert float((found != expected.float()).float().mean()) < 1e-3


@pytest.mark.parametrize("rank", [1, 4, 64, 100, 300])
@pytest.mark.parametrize("factor", [torch.float32, BF16, torch.float16])
def test_the_formula_for_every_rank(tmp_path: Path, rank: int, factor: torch.dtype) -> None:
    w = random_tensor((301, 129), BF16, 1)
    parts = factors("m", 301, 129, rank=rank, dtype=factor)
    base = write_checkpoint(tmp_path / "base", {"m.weight": w})
    found = view(base, write_adapter(tmp_path / "a", parts, r=rank, lora_alpha=12))
    a, b = parts.values()
    assert_applied(read_tensor(found, "m.weight"), applied(w, a, b, 12 / rank))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_handed_out_is_at_least_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    w, parts = random_tensor((30, 20), dtype, 1), factors("m", 30, 20)
    base = write_checkpoint(tmp_path / "base", {"m.weight": w})
    found = view(base, write_adapter(tmp_path / "a", parts))
    assert found.tensors["m.weight"].dtype == open_checkpoint(base).tensors["m.weight"].dtype
    expected = applied(w, *parts.values(), 2)
    if dtype is torch.float64:
        assert torch.allclose(read_tensor(found, "m.weight"), expected, rtol=1e-14, atol=0)
    else:
        assert_applied(read_tensor(found, "m.weight"), expected)


def test_scaling_follows_patterns_and_rank_stabilisation(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    parts = factors("layers.0.q", 72, 40, rank=2) | factors("layers.1.q", 40, 40, rank=8)
    config: dict[str, Any] = {
        "r": 2,
        "lora_alpha": 3,
        "use_rslora": True,
        "rank_pattern": {r"layers\.[1-9]+\.q": 8},
        "alpha_pattern": {"nothing": 7, "0.q": 5.5, "layers.0.q": 100},
    }
    found = view(base, write_adapter(tmp_path / "a", parts, **config))
    tensors, scalings = base_tensors(), {0: 5.5 / math.sqrt(2), 1: 3 / math.sqrt(8)}
    for layer, scaling in scalings.items():
        a, b = (parts[f"layers.{layer}.q.lora_{f}.weight"] for f in "AB")
        name = f"layers.{layer}.q.weight"
        assert_applied(read_tensor(found, name), applied(tensors[name], a, b, scaling))


@pytest.mark.parametrize("flag", [True, False])
def test_weights_stored_the_other_way_round(tmp_path: Path, flag: bool) -> None:
    # (in, out), as Conv1D of GPT-2 has it; for a square one only the config tells.
    w = {
        "wide.weight": random_tensor((20, 60), BF16, 1),
        "q.weight": random_tensor((8, 8), BF16, 2),
    }
    parts = factors("wide", 60, 20) | factors("q", 8, 8)
    found = view(
        write_checkpoint(tmp_path / "base", w),
        write_adapter(tmp_path / "a", parts, fan_in_fan_out=flag),
    )
    a, b = parts["wide.lora_A.weight"], parts["wide.lora_B.weight"]
    assert_applied(read_tensor(found, "wide.weight"), applied(w["wide.weight"].T, a, b, 2).T)
    a, b, square = parts["q.lora_A.weight"], parts["q.lora_B.weight"], w["q.weight"]
    expected = applied(square.T, a, b, 2).T if flag else applied(square, a, b, 2)
    assert_applied(read_tensor(found, "q.weight"), expected)


def test_embeddings_and_convolutions(tmp_path: Path) -> None:
    tensors = base_tensors()
    ea, eb = random_tensor((4, 96), torch.float32, 5), random_tensor((40, 4), torch.float32, 6)
    ca, cb = random_tensor((4, 6, 3, 3), BF16, 7), random_tensor((24, 4, 1, 1), BF16, 8)
    parts = {
        "embed_tokens.lora_embedding_A": ea,
        "embed_tokens.lora_embedding_B": eb,
        "conv.lora_A.weight": ca,
        "conv.lora_B.weight": cb,
    }
    found = view(write_base(tmp_path / "base"), write_adapter(tmp_path / "a", parts))
    embedding = applied(tensors["embed_tokens.weight"], eb.T, ea.T, 2)
    assert_applied(read_tensor(found, "embed_tokens.weight"), embedding)
    convolution = applied(tensors["conv.weight"].flatten(1), ca.flatten(1), cb.flatten(1), 2)
    assert_applied(read_tensor(found, "conv.weight").flatten(1), convolution)


def test_whole_parameters_take_the_place_of_the_bases(tmp_path: Path) -> None:
    base = add_side_files(write_base(tmp_path / "base"), {"vocab_size": 96, "text": {"x": 96}})
    head = random_tensor((98, 40), torch.float32, 1)
    embedding, bias = random_tensor((98, 40), BF16, 2), random_tensor((72,), torch.float32, 3)
    parts = factors("embed_tokens", 98, 40) | {
        "lm_head.weight": head,
        "embed_tokens.base_layer.weight": embedding,
        "layers.0.q.base_layer.bias": bias,
    }
    found = view(base, write_adapter(tmp_path / "a", parts, modules_to_save=["lm_head"]))
    assert found.config["vocab_size"] == 98
    assert found.config["text"] == {"x": 96}
    assert b'"vocab_size": 98' in found.read_side_file("config.json")
    assert torch.equal(read_tensor(found, "lm_head.weight"), head)
    assert torch.equal(read_tensor(found, "layers.0.q.bias"), bias)
    a, b = parts["embed_tokens.lora_A.weight"], parts["embed_tokens.lora_B.weight"]
    assert_applied(read_tensor(found, "embed_tokens.weight"), applied(embedding, a, b, 2))
    assert {t.dtype for t in found.tensors.values()} == {"BF16"}


def test_what_is_not_changed_stays_where_it_was(tmp_path: Path) -> None:
    path = write_base(tmp_path / "base", shards=2)
    base, found = (
        open_checkpoint(path),
        view(path, write_adapter(tmp_path / "a", factors("layers.0.q", 72, 40))),
    )
    for name in base.tensors.keys() - {"layers.0.q.weight"}:
        assert found.locate(name) == base.locate(name)
    assert found.label == f"{path}+{tmp_path / 'a'}"
    assert found.identity().items() > base.identity().items()


def test_what_is_opened_again_by_the_pinned_name_has_the_adapter(tmp_path: Path) -> None:
    base = SafetensorsCheckpoint(LocalStorage(write_base(tmp_path / "base")))
    storage = LocalStorage(write_adapter(tmp_path / "a", factors("layers.0.q", 72, 40)))
    assert LoraApplied(base, storage).pinned == ""
    base.pinned = "org/model@12ab"
    assert LoraApplied(base, storage).pinned == f"org/model@12ab+{tmp_path / 'a'}"
    storage.pinned = "org/adapter@34cd"
    found = parse_reference(LoraApplied(base, storage).pinned)
    assert (found.repo_id, found.revision) == ("org/model", "12ab")
    assert found.adapter is not None
    assert (found.adapter.repo_id, found.adapter.revision) == ("org/adapter", "34cd")


def test_the_identity_follows_the_adapters_config(tmp_path: Path) -> None:
    base, parts = write_base(tmp_path / "base"), factors("layers.0.q", 72, 40)
    one = view(base, write_adapter(tmp_path / "a", parts)).identity()
    write_adapter(tmp_path / "b", parts, lora_alpha=9)
    (tmp_path / "b/adapter_config.json").rename(tmp_path / "a/adapter_config.json")
    assert view(base, tmp_path / "a").identity() != one


def test_an_adapter_on_an_adapter(tmp_path: Path) -> None:
    parts = [factors("layers.0.q", 72, 40, seed=s) for s in (1, 2)]
    first = view(write_base(tmp_path / "base"), write_adapter(tmp_path / "a", parts[0]))
    both = LoraApplied(first, LocalStorage(write_adapter(tmp_path / "b", parts[1])))
    once = applied(base_tensors()["layers.0.q.weight"], *parts[0].values(), 2)
    found = read_tensor(both, "layers.0.q.weight")
    assert_applied(found, applied(once.float(), *parts[1].values(), 2))
    assert both.scratch > first.scratch > 0  # a thread that reads one reads the other


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 700),
    columns=st.integers(1, 900),
    rank=st.sampled_from([1, 3, 16, 70]),
    turned=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_range_is_the_slice_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    columns: int,
    rank: int,
    turned: bool,
    seed: int,
) -> None:
    root = tmp_path_factory.mktemp("x")
    shape = (columns, rows) if turned else (rows, columns)
    w = {"m.weight": random_tensor(shape, BF16, 1)}
    parts = factors("m", rows, columns, rank=rank)
    found = view(
        write_checkpoint(root / "base", w),
        write_adapter(root / "a", parts, r=rank, fan_in_fan_out=turned),
    )
    assert_ranges_are_slices(found, "m.weight", seed, count=10)
    a, b = parts.values()
    expected = applied(w["m.weight"].T, a, b, 8 / rank).T if turned else None
    expected = applied(w["m.weight"], a, b, 8 / rank) if expected is None else expected
    assert_applied(read_tensor(found, "m.weight"), expected)


def test_every_budget_and_mode_gives_the_same_bytes_and_one_rounding(tmp_path: Path) -> None:
    w = {"m.weight": random_tensor((3000, 1000), BF16, 1), "rest": random_tensor((77,), BF16, 2)}
    parts = [factors("m", 3000, 1000, rank=6, seed=s) for s in (1, 2)]
    base = write_checkpoint(tmp_path / "base", w)
    views = [
        view(base, write_adapter(tmp_path / f"a{i}", p, r=6, lora_alpha=6))
        for i, p in enumerate(parts)
    ]
    exact = sum(applied(w["m.weight"], *p.values(), 1) for p in parts) / 2
    seen = set()
    for i, options in enumerate([{}, {"memory": 280 * 2**20}, *({"io": m} for m in ("mmap",))]):
        out = tmp_path / f"out{i}"
        merge_views(views, out, **options)  # type: ignore[arg-type]
        seen.add((out / "model.safetensors").read_bytes())
    merged = read_checkpoint(tmp_path / "out0")
    assert len(seen) == 1
    assert merged["m.weight"].dtype == BF16
    assert float((merged["m.weight"] != exact.to(BF16)).float().mean()) < 1e-3
    assert ulps_apart(merged["m.weight"], exact.to(BF16)) <= 1
    assert torch.equal(merged["rest"], w["rest"])


def test_threads_read_the_same_bits(tmp_path: Path) -> None:
    w = {f"{i}.weight": random_tensor((300, 400), BF16, i) for i in range(3)}
    parts = factors("0", 300, 400) | factors("1", 300, 400, seed=1) | factors("2", 300, 400, seed=2)
    found = view(write_checkpoint(tmp_path / "base", w), write_adapter(tmp_path / "a", parts, r=4))
    names = list(w) * 8
    with ThreadPoolExecutor(4) as pool:
        tensors = list(pool.map(lambda name: read_tensor(found, name), names))
    for name, tensor in zip(names, tensors, strict=True):
        assert torch.equal(tensor, read_tensor(found, name))


def test_what_is_not_finite_or_cut_off_is_refused_by_name(tmp_path: Path) -> None:
    parts = factors("layers.0.q", 72, 40)
    parts["layers.0.q.lora_B.weight"][3, 1] = float("nan")
    base = write_base(tmp_path / "base")
    found = view(base, write_adapter(tmp_path / "a", parts))
    models = [open_checkpoint(base), found]
    refusal(lambda: merge_views(models, tmp_path / "out"), r"layers\.0\.q\.weight", "NaN")
    with (tmp_path / "a/adapter_model.safetensors").open("r+b") as file:
        file.truncate(1000)
    refusal(lambda: merge_views(models, tmp_path / "out"), "ends before", "adapter_model")


def test_a_tied_head_that_follows_the_embedding_is_said(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", base_tensors(), config={"tie_word_embeddings": True})
    parts = {
        "embed_tokens.lora_embedding_A": torch.ones(4, 96),
        "embed_tokens.lora_embedding_B": torch.ones(40, 4),
    }
    assert any("tied" in note for note in view(base, write_adapter(tmp_path / "a", parts)).notes)


def test_a_kept_tensor_is_rounded_once_to_the_models_dtype(tmp_path: Path) -> None:
    base, parts = write_base(tmp_path / "base"), factors("layers.0.q", 72, 40)
    found = view(base, write_adapter(tmp_path / "a", parts))
    merge_views([found, open_checkpoint(base)], tmp_path / "out", keep=["layers.0.q.weight"])
    kept = read_checkpoint(tmp_path / "out")["layers.0.q.weight"]
    exact = applied(base_tensors()["layers.0.q.weight"], *parts.values(), 2)
    assert torch.equal(kept, exact.float().to(BF16))


def test_the_output_has_the_models_dtype_and_config(tmp_path: Path) -> None:
    base = add_side_files(write_base(tmp_path / "base"))
    found = view(base, write_adapter(tmp_path / "a", factors("layers.0.q", 72, 40)))
    merge_views([found, open_checkpoint(base)], tmp_path / "out")
    assert read_json(tmp_path / "out/config.json")["dtype"] == "bfloat16"
    assert {t.dtype for t in read_checkpoint(tmp_path / "out").values()} == {BF16}


def test_the_budget_counts_what_a_view_needs(tmp_path: Path) -> None:
    w = {"m.weight": random_tensor((64, 50_000), BF16, 1)}
    base = write_checkpoint(tmp_path / "base", w)
    wide = view(base, write_adapter(tmp_path / "a", factors("m", 64, 50_000, rank=64), r=64))
    plain = open_checkpoint(base)
    assert wide.scratch > 8 * 64 * 50_000
    recipe = average_recipe(["a", "b"], None, "auto", [], [], None)
    peaks = [
        make_layout(make_plan(recipe, models, 10**9), models, 2**30).peak
        for models in ([plain, plain], [wide, plain])
    ]
    assert peaks[1] - peaks[0] > wide.scratch * 0.9
    assert as_read(wide, "m.weight").nbytes == 2 * plain.tensors["m.weight"].nbytes


def test_a_tokenizer_beside_the_adapter_replaces_the_bases(tmp_path: Path) -> None:
    base = add_side_files(write_base(tmp_path / "base"))
    adapter = write_adapter(tmp_path / "a", factors("layers.0.q", 72, 40))
    assert view(base, adapter).side_files() == open_checkpoint(base).side_files()
    (adapter / "tokenizer_config.json").write_text("{}")
    (adapter / "tokenizer.json").write_text("[1]")
    found = view(base, adapter)
    assert found.read_side_file("tokenizer.json") == b"[1]"
    assert found.side_files()["tokenizer.json"].size == 3
    assert "vocab.txt" not in found.side_files()
    assert "generation_config.json" in found.side_files()


@pytest.mark.parametrize(("theirs", "kept"), [("mit", True), ("cc-by-nc-4.0", False), ("", False)])
def test_the_card_names_a_license_only_where_both_agree(
    tmp_path: Path, theirs: str, kept: bool
) -> None:
    base = write_base(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    adapter = write_adapter(tmp_path / "a", factors("layers.0.q", 72, 40))
    (adapter / "README.md").write_text(f"---\nlicense: {theirs}\n---\n")
    assert bool(view(base, adapter).card()) == kept


Q = factors("layers.0.q", 72, 40)
REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "dora": (Q, {"use_dora": True}, "use_dora.*merge_and_unload"),
    "another type": (Q, {"peft_type": "IA3"}, "type 'IA3'"),
    "no type": (Q, {"peft_type": None}, "type None"),
    "pissa": (Q, {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*changed its base"),
    "unknown variant": (Q, {"use_magic": True}, "use_magic"),
    "unknown config": (Q, {"magic_config": {"x": 1}}, "magic_config"),
    "experts": (Q, {"target_parameters": ["x"]}, "target_parameters"),
    "wrong rank": (Q, {"r": 8}, "rank is 8"),
    "rank no number": (Q, {"r": "4"}, "rank '4'"),
    "alpha no number": (Q, {"lora_alpha": [1]}, "alpha"),
    "pattern broken": (Q, {"rank_pattern": {"(": 4}}, r"pattern \("),
    "pattern slow": (Q, {"alpha_pattern": {"(a*)*b": 4}}, "safely"),
    "pattern slower": (Q, {"alpha_pattern": {"a?" * 30: 4}}, "safely"),
    "patterns no object": (Q, {"alpha_pattern": [1]}, "alpha_pattern"),
    "unmatched": (Q | factors("other", 3, 4), {}, r"1 tensors.*\n  other\.weight"),
    "unmatched whole": (Q | {"score.weight": torch.ones(2, 2)}, {}, r"score\.weight"),
    "half a pair": ({"layers.0.q.lora_A.weight": torch.ones(4, 40)}, {}, "no LoRA adapter has"),
    "mixed pair": (
        {"m.lora_embedding_A": torch.ones(4, 40), "m.lora_B.weight": torch.ones(9, 4)},
        {},
        "no LoRA adapter has",
    ),
    "magnitudes": (Q | {"layers.0.q.lora_magnitude_vector": torch.ones(72)}, {}, "magnitude"),
    "bias of B": (Q | {"layers.0.q.lora_B.bias": torch.ones(72)}, {}, r"lora_B\.bias"),
    "wrong shape": (factors("layers.0.q", 71, 40), {}, r"B \[71, 4\].*\[72, 40\]"),
    "vector": (factors("layers.1.norm", 40, 1), {}, r"norm.*\[40\]"),
    "integers": (
        {n: t.to(torch.int32) for n, t in Q.items()},
        {},
        "I32",
    ),
    "whole of another shape": ({"layers.0.q.weight": torch.ones(73, 40)}, {}, r"\[73, 40\]"),
    "vocabulary of two sizes": (
        {"lm_head.weight": torch.ones(97, 40), "embed_tokens.weight": torch.ones(98, 40)},
        {},
        "number of tokens",
    ),
    "empty": ({}, {}, "is empty"),
}


@pytest.mark.parametrize(("parts", "config", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, parts: Tensors, config: dict[str, Any], says: str) -> None:
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "a", parts, **config)
    message = refusal(lambda: view(base, adapter))
    assert re.search(says, message, re.S), message


def test_folders_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    refusal(lambda: view(base, base), "no PEFT adapter", r"adapter_config\.json")
    adapter = write_adapter(tmp_path / "a", Q)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refusal(lambda: view(base, adapter), "pickle")
    (adapter / "adapter_config.json").write_text("{")
    refusal(lambda: view(base, adapter), "not JSON")


def test_names_without_the_prefix_are_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", Q)
    save_file(Q, adapter / "adapter_model.safetensors")
    refusal(lambda: view(write_base(tmp_path / "base"), adapter), "no LoRA adapter has")
