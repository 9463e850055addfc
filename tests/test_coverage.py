"""Which tensors the output has: globs, tied heads, and buffers that loaders rebuild."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from tests.support.checkpoints import (
    Config,
    Tensors,
    read_checkpoint,
    tiny_llama,
    write_checkpoint,
    write_json,
)
from tests.support.merging import assert_exact, refusal
from tests.support.outputs import read_json

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def loading_info(out: Path) -> dict[str, Any]:
    """What transformers says it missed when it loads the folder, really and on meta."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        for options in ({"device_map": "meta"}, {}):
            model, info = AutoModelForCausalLM.from_pretrained(
                out, output_loading_info=True, **options
            )
            problems = {key: found for key, found in info.items() if found}
            assert not problems, problems
        return {"model": model}


def average(paths: list[Path], out: Path, **options: Any) -> streammerge.Result:
    return streammerge.average([str(p) for p in paths], str(out), **options)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", ["5GB", "5KB"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_transformers_loads_the_output_whole(
    tmp_path: Path, tied: bool, size: str, dtype: str
) -> None:
    paths = [tiny_llama(tmp_path / f"m{i}", i, tied=tied) for i in (1, 2, 3)]
    average(paths, tmp_path / "out", max_shard_size=size, dtype=dtype)
    model = loading_info(tmp_path / "out")["model"]
    wanted = torch.float32 if dtype == "float32" else torch.bfloat16
    inputs = [read_checkpoint(p) for p in paths]
    state = model.state_dict()
    for name in inputs[0]:
        assert_exact(state[name], [m[name] for m in inputs], None, wanted)
    assert (HEAD in read_checkpoint(tmp_path / "out")) == (not tied)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.dtype == wanted


def give_head(folder: Path) -> Tensors:
    """Store the tied head as well, as some trainers do."""
    tensors = read_checkpoint(folder)
    tensors[HEAD] = tensors[EMBEDDING].clone()
    write_checkpoint(folder, tensors)
    return tensors


@pytest.mark.parametrize("holder", [0, 1])
def test_a_head_that_only_one_tied_model_stores_is_left_out_and_said(
    tmp_path: Path, holder: int
) -> None:
    paths = [tiny_llama(tmp_path / f"m{i}", i, tied=True) for i in (0, 1)]
    give_head(paths[holder])
    result = average(paths, tmp_path / "out")
    merged = read_checkpoint(tmp_path / "out")
    assert HEAD not in merged
    assert_exact(merged[EMBEDDING], [read_checkpoint(p)[EMBEDDING] for p in paths])
    assert any(HEAD in note for note in result.notes)
    loading_info(tmp_path / "out")


def test_a_head_that_all_tied_models_store_is_merged(tmp_path: Path) -> None:
    paths = [tiny_llama(tmp_path / f"m{i}", i, tied=True) for i in (0, 1)]
    inputs = [give_head(p) for p in paths]
    average(paths, tmp_path / "out")
    merged = read_checkpoint(tmp_path / "out")
    assert_exact(merged[HEAD], [m[HEAD] for m in inputs])


@pytest.mark.parametrize("untied_first", [True, False])
def test_a_tied_and_an_untied_model_are_refused(tmp_path: Path, untied_first: bool) -> None:
    paths = [tiny_llama(tmp_path / f"m{i}", i, tied=bool(i) == untied_first) for i in (0, 1)]
    message = refusal(
        lambda: streammerge.average([str(p) for p in paths], str(tmp_path / "out")), r"lm_head"
    )
    assert "m1" in message or "m0" in message
    assert not (tmp_path / "out").exists()


def test_an_untied_model_that_lacks_its_head_is_refused(tmp_path: Path) -> None:
    paths = [tiny_llama(tmp_path / f"m{i}", i, tied=False) for i in (0, 1)]
    tensors = read_checkpoint(paths[1])
    del tensors[HEAD]
    write_checkpoint(paths[1], tensors)
    refusal(lambda: streammerge.average([str(p) for p in paths], str(tmp_path / "out")), "lm_head")


@pytest.mark.parametrize("nested", ["text_config", "llm_config"])
def test_tying_is_also_read_from_a_nested_config(tmp_path: Path, nested: str) -> None:
    paths = []
    for i, tied in enumerate((True, True)):
        tensors = {EMBEDDING: torch.ones(8, 4), "norm.weight": torch.ones(4)}
        config: Config = {"model_type": "vlm", nested: {"tie_word_embeddings": tied}}
        extra = {HEAD: tensors[EMBEDDING].clone()} if i else {}
        paths.append(write_checkpoint(tmp_path / f"m{i}", tensors | extra, config=config))
    result = average(paths, tmp_path / "out")
    assert any(HEAD in note for note in result.notes)
    write_json(paths[0] / "config.json", {nested: {"tie_word_embeddings": False}})
    refusal(lambda: average(paths, tmp_path / "out2"), "lm_head")


def test_a_head_of_another_shape_than_the_embedding_is_no_alias(tmp_path: Path) -> None:
    config: Config = {"model_type": "toy", "tie_word_embeddings": True}
    tensors = {EMBEDDING: torch.ones(8, 4)}
    a = write_checkpoint(tmp_path / "a", tensors, config=config)
    b = write_checkpoint(tmp_path / "b", tensors | {HEAD: torch.ones(9, 4)}, config=config)
    refusal(lambda: average([a, b], tmp_path / "out"), "lm_head")


@pytest.mark.parametrize("holder", [0, 1])
def test_position_ids_that_one_model_lacks_are_left_out_and_said(
    tmp_path: Path, holder: int
) -> None:
    models: list[Tensors] = [{"embeddings.word.weight": torch.ones(4, 4)} for _ in range(2)]
    models[holder]["embeddings.position_ids"] = torch.arange(8).reshape(1, 8)
    paths = [write_checkpoint(tmp_path / f"m{i}", m) for i, m in enumerate(models)]
    result = average(paths, tmp_path / "out")
    assert any("embeddings.position_ids" in note for note in result.notes)
    assert read_checkpoint(tmp_path / "out").keys() == {"embeddings.word.weight"}


def test_an_integer_tensor_of_another_name_is_not_left_out_in_silence(tmp_path: Path) -> None:
    a = write_checkpoint(tmp_path / "a", {"w": torch.ones(4), "vocab_map": torch.arange(8)})
    b = write_checkpoint(tmp_path / "b", {"w": torch.ones(4)})
    refusal(lambda: average([a, b], tmp_path / "out"), "vocab_map")


def globbed(root: Path) -> list[Path]:
    base = {f"layers.{i}.{part}.weight": torch.ones(4) for i in (1, 2, 10) for part in "qk"}
    first = base | {"head.weight": torch.full((6,), 3.0)}
    second = {n: t * 3 for n, t in base.items()} | {
        "head.weight": torch.ones(2),
        "x": torch.ones(1),
    }
    return [write_checkpoint(root / n, t) for n, t in (("a", first), ("b", second))]


def test_skip_leaves_out_and_keep_takes_from_the_first_that_has_it(tmp_path: Path) -> None:
    paths = globbed(tmp_path)
    average(paths, tmp_path / "out", skip=["layers.1.*"], keep=["head.*", "x"])
    merged = read_checkpoint(tmp_path / "out")
    assert merged.keys() == {
        *(f"layers.{i}.{p}.weight" for i in (2, 10) for p in "qk"),
        *("head.weight", "x"),
    }
    assert merged["head.weight"].tolist() == [3.0] * 6
    assert merged["x"].tolist() == [1.0]
    assert merged["layers.10.q.weight"].tolist() == [2.0] * 4
    average(paths[::-1], tmp_path / "back", keep=["head.*", "x"])
    assert read_checkpoint(tmp_path / "back")["head.weight"].tolist() == [1.0] * 2


def test_kept_tensors_keep_their_bits_and_their_dtype_is_known(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), -0.0, 1e-40, 3.14159], dtype=torch.float32)
    models = [{"w": torch.ones(4), "odd": odd}, {"w": torch.ones(4), "odd": torch.ones(7)}]
    paths = [write_checkpoint(tmp_path / f"m{i}", m) for i, m in enumerate(models)]
    average(paths, tmp_path / "out", keep=["odd"])
    found = read_checkpoint(tmp_path / "out")["odd"]
    assert found.view(torch.int32).tolist() == odd.view(torch.int32).tolist()


def test_globs_are_case_sensitive_and_match_whole_names(tmp_path: Path) -> None:
    paths = globbed(tmp_path)
    for glob in ("HEAD.*", "ead.weight", "layers.1"):
        refusal(lambda g=glob: average(paths, tmp_path / "out", keep=[g, "x"]), "match|--keep")


def test_the_index_has_no_tensor_that_was_left_out(tmp_path: Path) -> None:
    paths = globbed(tmp_path)
    average(paths, tmp_path / "out", skip=["head.*", "x"], max_shard_size="40B")
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    assert len(index["weight_map"]) == 6
    assert index["metadata"]["total_size"] == 6 * 16
