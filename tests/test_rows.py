"""Vocabularies padded to different sizes: which rows the output has, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.checkpoint import open_checkpoint
from streammerge.tensors import TensorInfo
from streammerge.views.rows import padded_tensors, with_rows
from tests.support.checkpoints import (
    Config,
    Tensors,
    random_tensor,
    read_checkpoint,
    tiny_llama,
    write_checkpoint,
)
from tests.support.cli import in_process
from tests.support.merging import assert_exact, refusal
from tests.support.outputs import manifest, read_json
from tests.support.views import assert_ranges_are_slices, merge_views, read_tensor

EMBEDDING, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
VOCABULARY = (EMBEDDING, HEAD, BIAS)
OTHER = "model.layers.0.weight"
WIDTH = 24


def model(rows: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    shapes = {EMBEDDING: (rows, WIDTH), HEAD: (rows, WIDTH), BIAS: (rows,), OTHER: (40, WIDTH)}
    return {
        name: random_tensor(shape, dtype, 100 * seed + number)
        for number, (name, shape) in enumerate(shapes.items())
    }


def written(folder: Path, *models: Tensors, **config: Any) -> list[Path]:
    paths = []
    for number, tensors in enumerate(models):
        rows = len(tensors[EMBEDDING])
        settings: Config = {"model_type": "toy", "vocab_size": rows, **config}
        paths.append(write_checkpoint(folder / f"m{number}", tensors, config=settings))
    return paths


def brought_to(tensors: Tensors, rows: int, *donors: Tensors) -> Tensors:
    """What a model contributes: its own rows, and behind them those of the first that has them."""
    result = dict(tensors)
    for name in VOCABULARY:
        values = tensors[name][:rows]
        for donor in donors:
            values = torch.cat([values, donor[name][len(values) : rows]])
        result[name] = values
    return result


@pytest.mark.parametrize(
    ("rule", "rows"), [("min", 96), ("base", 100), ("max", 128)], ids=["min", "base", "max"]
)
def test_each_rule_takes_the_rows_that_it_says(tmp_path: Path, rule: str, rows: int) -> None:
    models = [model(100, 1), model(96, 2), model(128, 3), model(110, 4)]
    paths = written(tmp_path, *models)
    out = tmp_path / "out"
    result = streammerge.average(paths, out, rows=rule, weights=[4, 3, 2, 1])
    inputs = [brought_to(m, rows, *models) for m in models]
    merged = read_checkpoint(out)
    assert merged[EMBEDDING].shape == (rows, WIDTH)
    for name in merged:
        assert_exact(merged[name], [m[name] for m in inputs], [4, 3, 2, 1])
    assert read_json(out / "config.json")["vocab_size"] == rows
    assert manifest(out)["recipe"]["rows"] == rule
    changed = sum(len(m[EMBEDDING]) != rows for m in models)
    assert len([note for note in result.notes if f"to {rows} (--rows {rule})" in note]) == changed
    assert streammerge.verify(out, recompute="all").ok


def test_rows_that_only_one_model_has_are_its_own(tmp_path: Path) -> None:
    models = [model(96, 1), model(100, 2)]
    streammerge.average(written(tmp_path, *models), tmp_path / "out", rows="max")
    merged = read_checkpoint(tmp_path / "out")
    for name in VOCABULARY:
        assert torch.equal(merged[name][96:], models[1][name][96:])


def test_padding_is_refused_with_an_explanation_where_no_rule_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = written(tmp_path, model(100, 1), model(96, 2))
    refusal(
        lambda: streammerge.average(paths, tmp_path / "out"),
        "3 tensors with a row for each token",
        rf"{EMBEDDING}: \[100, 24\] in .*m0; \[96, 24\] in .*m1",
        "--rows min .*max .*base",
    )
    done = in_process(capsys, "plan", *paths, "-o", tmp_path / "out", "--rows", "min")
    assert done.code == 0, done.err
    assert "cut from 100 rows to 96 (--rows min)" in done.out


@pytest.mark.parametrize("rule", ["min", "max", "base"])
def test_models_without_padding_are_left_as_they_are(tmp_path: Path, rule: str) -> None:
    models = [model(96, 1), model(96, 2)]
    paths = written(tmp_path, *models)
    streammerge.average(paths, tmp_path / "plain")
    streammerge.average(paths, tmp_path / "out", rows=rule)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_other_tensors_whose_first_dimension_differs_are_no_vocabulary(tmp_path: Path) -> None:
    """Fewer key heads, or another number of positions: padding these would make a wrong model."""
    first, second = model(100, 1), model(96, 2)
    for name in ("model.layers.0.k_proj.weight", "model.embed_positions.weight"):
        first[name], second[name] = random_tensor((64, 8), torch.bfloat16, 8), torch.ones(16, 8)
        second[name] = second[name].bfloat16()
    paths = written(tmp_path, first, second)
    for rule in ("min", "max", "base", None):
        message = refusal(
            lambda r=rule: streammerge.average(paths, tmp_path / "out", rows=r),
            "2 tensors of differing shape",
            "k_proj",
            "embed_positions",
        )
        assert (EMBEDDING in message) == (rule is None)


def test_an_embedding_of_an_unknown_name_is_known_by_the_configs(tmp_path: Path) -> None:
    models = [{"tokens": torch.ones(rows, 8), "w": torch.ones(9, 8)} for rows in (100, 96)]
    paths = [
        write_checkpoint(tmp_path / f"m{i}", m, config={"text_config": {"vocab_size": len(t)}})
        for i, m in enumerate(models)
        if (t := m["tokens"]) is not None
    ]
    streammerge.average(paths, tmp_path / "out", rows="min")
    assert read_checkpoint(tmp_path / "out")["tokens"].shape == (96, 8)
    assert read_json(tmp_path / "out" / "config.json")["text_config"]["vocab_size"] == 96
    for path in paths:
        (path / "config.json").unlink()
    refusal(lambda: streammerge.average(paths, tmp_path / "no", rows="min"), "tokens", "shape")


def test_a_vocab_size_that_is_not_that_of_the_rows_stays(tmp_path: Path) -> None:
    paths = written(tmp_path, model(100, 1), model(96, 2), vocab_size=90)
    streammerge.average(paths, tmp_path / "out", rows="max")
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == 90


def test_a_tied_head_that_one_model_stores_goes_with_the_embedding(tmp_path: Path) -> None:
    models = [model(100, 1), model(96, 2)]
    for tensors in models:
        del tensors[BIAS]
    del models[1][HEAD]
    paths = written(tmp_path, *models, tie_word_embeddings=True)
    result = streammerge.average(paths, tmp_path / "out", rows="min")
    assert read_checkpoint(tmp_path / "out").keys() == {EMBEDDING, OTHER}
    assert any(f"left out {HEAD}" in note for note in result.notes)


def test_donors_of_another_dtype_keep_their_values(tmp_path: Path) -> None:
    """The tail of a bf16 model comes from an fp32 one: nothing is rounded before the merge."""
    models = [model(96, 1), model(100, 2, torch.float32), model(98, 3, torch.float16)]
    paths = written(tmp_path, *models)
    streammerge.average(paths, tmp_path / "out", rows="max", dtype="float32")
    merged = read_checkpoint(tmp_path / "out")
    inputs = [brought_to({n: t.float() for n, t in m.items()}, 96) for m in models]
    for name in VOCABULARY:
        # Rows of the first donor that has them: the second model, or for the third from row 98 on.
        tails = [models[1][name][96:], models[1][name][96:]]
        tails.append(torch.cat([models[2][name][96:98].float(), models[1][name][98:]]))
        columns = zip((m[name] for m in inputs), tails, strict=True)
        assert_exact(merged[name], [torch.cat(parts) for parts in columns])
    streammerge.average(paths, tmp_path / "auto", rows="max")
    assert {t.dtype for t in read_checkpoint(tmp_path / "auto").values()} == {torch.bfloat16}


@pytest.mark.parametrize("keep", [VOCABULARY[0], "lm_head.*"])
def test_tensors_that_are_kept_are_brought_to_size_too(tmp_path: Path, keep: str) -> None:
    models = [model(96, 1), model(100, 2)]
    streammerge.average(written(tmp_path, *models), tmp_path / "out", rows="max", keep=[keep])
    wanted = brought_to(models[0], 100, *models)
    name = EMBEDDING if keep == EMBEDDING else HEAD
    assert torch.equal(read_checkpoint(tmp_path / "out")[name], wanted[name])


def test_any_range_of_a_view_is_a_slice_of_it(tmp_path: Path) -> None:
    """Rows of 40 kB: reads of every size, in one model or over the border between two."""
    models = [
        {EMBEDDING: random_tensor((rows, 10_001), torch.float32, rows)} for rows in (50, 61, 55)
    ]
    paths = written(tmp_path, *models)
    for rule, rows in (("min", 50), ("max", 61)):
        views = with_rows([open_checkpoint(path) for path in paths], rule)
        for number, view in enumerate(views):
            values = [models[number][EMBEDDING][:rows]]
            for donor in models:
                values.append(donor[EMBEDDING][sum(map(len, values)) : rows])
            assert torch.equal(read_tensor(view, EMBEDDING), torch.cat(values))
            assert_ranges_are_slices(view, EMBEDDING, seed=number)


def test_many_small_windows_give_the_same_bytes(tmp_path: Path) -> None:
    models = [
        {EMBEDDING: random_tensor((rows, 300), torch.bfloat16, rows)} for rows in (5000, 5301)
    ]
    paths = written(tmp_path, *models)
    files = []
    for io in ("direct", "mmap", "buffered"):
        views = with_rows([open_checkpoint(path) for path in paths], "max")
        merge_views(views, tmp_path / io, memory=272 * 2**20, io=io)
        files.append((tmp_path / io / "model.safetensors").read_bytes())
    streammerge.average(paths, tmp_path / "out", rows="max")
    assert {*files} == {(tmp_path / "out" / "model.safetensors").read_bytes()}


def test_transformers_loads_the_result(tmp_path: Path) -> None:
    paths = [tiny_llama(tmp_path / f"m{n}", n, tied=False, vocab=n) for n in (64, 72)]
    for rule, rows in (("min", 64), ("max", 72)):
        streammerge.average(paths, tmp_path / rule, rows=rule)
        assert read_json(tmp_path / rule / "config.json")["vocab_size"] == rows
        assert streammerge.verify(tmp_path / rule, load=True).ok


def test_a_rule_that_is_none_is_refused(tmp_path: Path) -> None:
    paths = written(tmp_path, model(4, 1), model(3, 2))
    refusal(lambda: streammerge.average(paths, tmp_path / "out", rows="most"), "most", "min, max")


def test_what_goes_together_is_found_by_all_of_its_rows() -> None:
    class Holder:
        def __init__(self, rows: int, **others: tuple[int, ...]) -> None:
            shapes = {EMBEDDING: (rows, 8), HEAD: (rows, 8)} | others
            self.config: Config = {}
            self.tensors = {name: TensorInfo(name, "F32", shape) for name, shape in shapes.items()}

    holders = [Holder(100, a=(100, 3), b=(100,)), Holder(96, a=(96, 4), b=(95,))]
    assert padded_tensors(holders) == dict.fromkeys((EMBEDDING, HEAD), (100, 96))
    assert padded_tensors(holders[:1] * 2) == {}
