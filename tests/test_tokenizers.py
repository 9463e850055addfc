"""Merging models with different tokenizers: tokens, files, configs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streammerge.checkpoint import open_checkpoint
from streammerge.formats import Checkpoint
from streammerge.planning import make_plan
from streammerge.recipe import average_recipe
from streammerge.storage.local import LocalStorage
from streammerge.tokenizers import apply_tokenizer, tokenizer_wish
from streammerge.views.lora import LoraApplied
from tests.support.adapters import write_adapter
from tests.support.checkpoints import random_tensor, read_checkpoint, write_checkpoint, write_json
from tests.support.merging import refusal
from tests.support.outputs import read_json
from tests.support.tokens import (
    EMBEDDING,
    HEAD,
    loaded_vocabulary,
    model_with_tokens,
    rows_by_token,
    write_tokenizer,
)
from tests.support.views import assert_ranges_are_slices, merge_views, read_tensor

A_WORDS = ["<unk>", "a", "b", "c", "d"]
B_WORDS = ["<unk>", "d", "x", "c", "b", "a"]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    a = model_with_tokens(tmp_path / "a", 1, A_WORDS, ["<s>"], unk_token="<unk>")
    b = model_with_tokens(tmp_path / "b", 2, B_WORDS, ["<s>", "<y>"], unk_token="<unk>", rows=12)
    return [a, b]


def views(paths: list[Path], base: int | None = 0, **tokenizer: Any) -> list[Checkpoint]:
    wish = tokenizer_wish(None, tokenizer)
    assert wish is not None
    return apply_tokenizer([open_checkpoint(p) for p in paths], base, wish)


@pytest.mark.parametrize("source", ["base", "union"])
def test_the_merge_averages_rows_of_the_same_token(
    two: list[Path], tmp_path: Path, source: str
) -> None:
    merge_views(views(two, source=source), tmp_path / "out")
    a, b = (rows_by_token(path, EMBEDDING) for path in two)
    merged = rows_by_token(tmp_path / "out", EMBEDDING)
    assert merged.keys() == (a.keys() if source == "base" else a.keys() | b.keys())
    for token, row in merged.items():
        own = [m[token].double() for m in (a, b) if token in m]
        assert torch.equal(row, (sum(own) / len(own)).to(torch.bfloat16)), token
    assert len(read_checkpoint(tmp_path / "out")[HEAD]) == len(merged)
    assert read_json(tmp_path / "out/config.json")["vocab_size"] == len(merged)


def test_transformers_loads_and_tokenizes_with_the_union(two: list[Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merge_views(views(two, source="union"), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 8
    assert tokenizer.convert_ids_to_tokens(tokenizer("a<y>x<s>")["input_ids"]) == [
        *("a", "<y>", "x", "<s>")
    ]
    first = loaded_vocabulary(two[0])
    assert {t: i for t, i in tokenizer.get_vocab().items() if t in first} == first


def test_any_budget_and_mode_gives_the_same_bytes(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(3000)]
    draw = torch.randperm(3000, generator=torch.Generator().manual_seed(0)).tolist()
    a = model_with_tokens(tmp_path / "a", 1, ["<unk>", *words])
    b = model_with_tokens(
        tmp_path / "b", 2, ["<unk>", *(words[i] for i in draw), "more"], rows=3100
    )
    c = model_with_tokens(tmp_path / "c", 3, ["<unk>", *words[::2], "more", "most"])
    seen = set()
    for i, options in enumerate(
        [{}, {"memory": 304 * 2**20}, {"io": "direct"}, {"io": "buffered"}]
    ):
        both = views([a, b, c], None, source="union", pad_to_multiple_of=64)
        merge_views(both, tmp_path / f"out{i}", **options)  # type: ignore[arg-type]
        seen.add((tmp_path / f"out{i}/model.safetensors").read_bytes())
    assert len(seen) == 1
    for view in both:
        for name in (EMBEDDING, HEAD):
            assert_ranges_are_slices(view, name, 5)


def test_models_of_one_tokenizer_are_read_as_before(tmp_path: Path) -> None:
    paths = [model_with_tokens(tmp_path / n, i, A_WORDS, ["<s>"]) for i, n in enumerate("ab")]
    for path, view in zip(paths, views(paths, source="union"), strict=True):
        plain = open_checkpoint(path)
        assert all(view.locate(name) == plain.locate(name) for name in plain.tensors)
        assert view.identity() == plain.identity()
        assert view.config == plain.config
        assert view.scratch == 0
        for file in plain.side_files():
            assert view.read_side_file(file) == plain.read_side_file(file)


def test_plans_of_two_vocabularies_differ(two: list[Path]) -> None:
    recipe = average_recipe(["a", "b"], None, "auto", [], [], None)
    prints = set()
    for options in ({}, {"tokens": {"a": {"source": {"kind": "zero"}, "force": True}}}):
        plan = make_plan(recipe, views(two, source="base", **options), 10**9)
        prints.add(plan.fingerprint())
    assert len(prints) == 2


def test_a_tied_model_and_its_only_tensor(tmp_path: Path) -> None:
    a = model_with_tokens(tmp_path / "a", 1, A_WORDS, tied=True)
    b = model_with_tokens(tmp_path / "b", 2, B_WORDS, tied=True)
    merge_views(views([a, b], source="union"), tmp_path / "out")
    assert HEAD not in read_checkpoint(tmp_path / "out")
    assert len(read_checkpoint(tmp_path / "out")[EMBEDDING]) == 6


def test_biases_of_the_head_follow_the_tokens(two: list[Path], tmp_path: Path) -> None:
    for seed, path in enumerate(two):
        tensors = read_checkpoint(path)
        tensors["lm_head.bias"] = random_tensor((len(tensors[HEAD]),), torch.bfloat16, seed)
        write_checkpoint(path, tensors)
    found = views(two, source="base")
    rows = loaded_vocabulary(two[1])
    bias, theirs = read_tensor(found[1], "lm_head.bias"), read_checkpoint(two[1])["lm_head.bias"]
    for token, row in loaded_vocabulary(two[0]).items():
        assert bias[row] == theirs[rows[token]]


def test_tokens_beyond_the_rows_count_as_lacking(tmp_path: Path) -> None:
    a = model_with_tokens(tmp_path / "a", 1, A_WORDS, ["<pad>"], rows=5)
    b = model_with_tokens(tmp_path / "b", 2, A_WORDS)
    found = views([a, b], source="base")
    assert read_tensor(found[0], EMBEDDING).shape == (6, 16)
    assert not read_tensor(found[0], EMBEDDING)[5].any()
    assert any("<pad>" in note and "zeros" in note for note in found[0].notes)


def test_rows_of_another_dtype_are_handed_out_exactly(tmp_path: Path) -> None:
    a = model_with_tokens(tmp_path / "a", 1, A_WORDS)
    b = model_with_tokens(tmp_path / "b", 2, B_WORDS, dtype=torch.float32)
    found = views([a, b], source="union")
    row = loaded_vocabulary(b)["x"]
    new = read_tensor(found[0], EMBEDDING)
    assert found[0].tensors[EMBEDDING].dtype == "BF16"
    assert torch.equal(new[5], read_checkpoint(b)[EMBEDDING][row])


def test_special_ids_keep_their_tokens(two: list[Path]) -> None:
    for path in two:
        config = read_json(path / "config.json")
        vocabulary = loaded_vocabulary(path)
        extra = {"eos_token_id": [vocabulary["d"], vocabulary["<s>"]], "pad_token_id": -1}
        extra |= {"bos_token_id": vocabulary.get("<y>", 2), "text": {"x_token_id": vocabulary["a"]}}
        write_json(path / "config.json", config | extra)
        write_json(path / "generation_config.json", {"eos_token_id": vocabulary["c"], "top_k": 3})
    a = loaded_vocabulary(two[0])
    found = views(two, source="base")[1]
    assert found.config["eos_token_id"] == [a["d"], a["<s>"]]
    assert found.config["pad_token_id"] == -1
    assert found.config["bos_token_id"] == 2, "its token is gone, so the base's is taken"
    assert found.config["text"] == {"x_token_id": a["a"]}
    generation = json.loads(found.read_side_file("generation_config.json"))
    assert generation == {"eos_token_id": a["c"], "top_k": 3}


def test_an_adapted_embedding_is_put_in_order(two: list[Path], tmp_path: Path) -> None:
    parts = {
        "model.embed_tokens.lora_embedding_A": random_tensor((4, 12), torch.float32, 1),
        "model.embed_tokens.lora_embedding_B": random_tensor((16, 4), torch.float32, 2),
    }
    adapter = LocalStorage(write_adapter(tmp_path / "adapter", parts))
    tuned = LoraApplied(open_checkpoint(two[1]), adapter)
    wish = tokenizer_wish("base", None)
    assert wish is not None
    found = apply_tokenizer([open_checkpoint(two[0]), tuned], 0, wish)[1]
    whole, rows = read_tensor(tuned, EMBEDDING), loaded_vocabulary(two[1])
    for token, row in loaded_vocabulary(two[0]).items():
        assert torch.equal(read_tensor(found, EMBEDDING)[row], whole[rows[token]])
    assert found.scratch > tuned.scratch


def test_a_model_without_a_tokenizer_is_taken_to_have_the_bases(tmp_path: Path) -> None:
    paths = [model_with_tokens(tmp_path / n, i, A_WORDS) for i, n in enumerate("ab")]
    for file in paths[1].glob("tokenizer*"):
        file.unlink()
    found = views(paths, source="base")
    assert any("no tokenizer" in note for note in found[0].notes)
    assert torch.equal(read_tensor(found[1], EMBEDDING), read_checkpoint(paths[1])[EMBEDDING])


def test_a_source_that_is_not_merged(two: list[Path], tmp_path: Path) -> None:
    other = model_with_tokens(tmp_path / "other", 3, ["<unk>", "b", "x"])
    wish = tokenizer_wish(str(other), None)
    assert wish is not None
    models = [open_checkpoint(p) for p in two]
    found = apply_tokenizer(models, 0, wish, [open_checkpoint(other)])
    merge_views(found, tmp_path / "out")
    assert loaded_vocabulary(tmp_path / "out") == {"<unk>": 0, "b": 1, "x": 2}


def test_tensors_are_found_by_the_recipes_globs(tmp_path: Path) -> None:
    def write(folder: Path, words: list[str]) -> Path:
        tensors = {"e.weight": torch.arange(len(words)).float()[:, None].repeat(1, 3)}
        tensors["norm.weight"] = torch.ones(3)
        write_checkpoint(folder, tensors, config={"vocab_size": len(words)})
        write_tokenizer(folder, words)
        return folder

    paths = [write(tmp_path / "a", list("pqrs")), write(tmp_path / "b", list("srqp"))]
    refusal(lambda: views(paths, source="base"), r"e\.weight", "embeddings: \\[globs\\]")
    found = views(paths, source="base", embeddings=["e.*"])
    assert read_tensor(found[1], "e.weight")[:, 0].tolist() == [3, 2, 1, 0]
    refusal(lambda: views(paths, source="base", embeddings=["x"]), "'x' matches no tensor")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"sauce": "base"}, r"tokenizer\.sauce"),
    "unknown key of a token": ({"tokens": {"a": {"from": "b"}}}, r"tokenizer\.tokens\.a\.from"),
    "unknown source": ({"source": "nowhere"}, "'nowhere' is none of the models.*base, union"),
    "unknown model": ({"tokens": {"a": {"source": "nobody"}}}, "'nobody' is none of the models"),
    "force without a source": ({"tokens": {"a": {"force": True}}}, "force needs a source"),
    "no padding": ({"pad_to_multiple_of": 0}, "pad_to_multiple_of"),
    "two tokens": (
        {"tokens": {"a": {"source": {"kind": "model_token", "model": "@", "token": "b"}}}},
        "no such token|none of",
    ),
    "neither token nor id": (
        {"tokens": {"a": {"source": {"kind": "model_token", "model": "b"}}}},
        "either token or token_id",
    ),
}


@pytest.mark.parametrize(("tokenizer", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(two: list[Path], tokenizer: dict[str, Any], says: str) -> None:
    refusal(lambda: views(two, **tokenizer), says.replace(".*", "[\\s\\S]*"))


def test_tokens_that_a_model_lacks_are_refused_as_a_source(two: list[Path]) -> None:
    label = str(two[0])
    for source in (
        label,
        {"kind": "model_token", "model": label, "token": "x"},
        {"kind": "model_token", "model": label, "token_id": 6},
    ):
        tokens = {"x": {"source": source}}
        refusal(lambda t=tokens: views(two, source="union", tokens=t), "no such token")


def test_a_head_that_a_tied_model_does_not_store_is_no_source(tmp_path: Path) -> None:
    a = model_with_tokens(tmp_path / "a", 1, A_WORDS, tied=True)
    b = model_with_tokens(tmp_path / "b", 2, A_WORDS)
    tokens = {"a": {"source": str(a), "force": True}}
    refusal(lambda: views([b, a], source="base", tokens=tokens), "lm_head", "tied")


def test_both_keys_are_refused() -> None:
    refusal(lambda: tokenizer_wish("base", {"source": "base"}), "both given")
    assert tokenizer_wish(None, None) is None


def test_rows_of_two_lengths_are_refused(two: list[Path]) -> None:
    tensors = read_checkpoint(two[1])
    tensors[EMBEDDING] = torch.ones(12, 17)
    write_checkpoint(two[1], tensors)
    refusal(lambda: views(two, source="union"), "differ in shape", r"\[17\]")
