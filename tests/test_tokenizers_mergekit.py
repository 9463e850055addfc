"""Vocabularies and rows held against mergekit 0.1.5, run on the same tiny models in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streammerge.checkpoint import open_checkpoint
from streammerge.tokenizers import apply_tokenizer, tokenizer_wish
from tests.support.checkpoints import read_checkpoint
from tests.support.oracle import needs_oracle, run_oracle
from tests.support.tokens import (
    EMBEDDING,
    HEAD,
    loaded_vocabulary,
    model_with_tokens,
    rows_by_token,
)
from tests.support.views import merge_views, read_tensor

pytestmark = [needs_oracle, pytest.mark.timeout(300)]  # one run of the oracle for all

COMMON = [f"w{i}" for i in range(20)]
MODELS: dict[str, dict[str, Any]] = {
    "a": {"words": ["<unk>", *COMMON, "onlya"], "added": ["<s>", "addA"]},
    # Another order, and rows that no token uses.
    "b": {"words": ["<unk>", "onlyb", *reversed(COMMON)], "added": ["<s>", "both"], "rows": 32},
    "c": {"words": ["<unk>", *COMMON[:-2], "both", "w19"], "added": ["<s>", "addC"]},
}
RULES = {
    "fresh": {"source": {"kind": "zero"}},
    "both": {"source": "b", "force": True},
    "onlya": {"source": {"kind": "model_token", "model": "c", "token": "addC"}},
    "w3": {"source": {"kind": "model_token", "model": "b", "token_id": 1}, "force": True},
}
CASES: dict[str, tuple[tuple[int, ...], str | None, Any]] = {
    "union, a": ((1, 0, 0), None, "union"),
    "union, b": ((0, 1, 0), None, "union"),
    "union, all": ((1, 2, 1), None, "union"),
    "union with a base, b": ((0, 1, 0), "a", "union"),
    "union with a base, all": ((2, 1, 1), "c", "union"),
    "base": ((0, 1, 0), "a", "base"),
    "base, all": ((1, 1, 1), "b", "base"),
    "a model": ((1, 1, 1), "a", "c"),
    "rules": ((1, 0, 1), "a", {"source": "union", "tokens": RULES}),
    "padding": ((1, 2, 1), "a", {"source": "base", "pad_to_multiple_of": 16}),
}
SCRIPT = """
import json, sys
from pathlib import Path
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
root = Path(sys.argv[1])
for number, recipe in enumerate(json.loads(sys.argv[2])):
    options = MergeOptions(quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(recipe), str(root / f"out{number}"), options)
"""


def recipe(root: Path, weights: tuple[int, ...], base: str | None, tokenizer: Any) -> Any:
    text = json.dumps(
        {
            "merge_method": "linear",
            "models": [
                {"model": f"@{name}", "parameters": {"weight": weight}}
                for name, weight in zip(MODELS, weights, strict=True)
            ],
            **({"base_model": f"@{base}"} if base else {}),
            **with_paths(tokenizer, "@"),
        }
    )
    return json.loads(text.replace("@", f"{root}/"))


def with_paths(tokenizer: Any, prefix: str) -> dict[str, Any]:
    """The recipe's keys, with a prefix before each name of a model."""
    if isinstance(tokenizer, str):
        return {"tokenizer_source": prefix + tokenizer if tokenizer in MODELS else tokenizer}
    text = json.dumps(tokenizer)
    for name in MODELS:
        text = text.replace(f'"{name}"', json.dumps(prefix + name))
    return {"tokenizer": json.loads(text)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mergekit")
    for seed, (name, options) in enumerate(MODELS.items()):
        model_with_tokens(root / name, seed, dtype=torch.float32, unk_token="<unk>", **options)
    run_oracle(SCRIPT, root, json.dumps([recipe(root, *case) for case in CASES.values()]))
    return root


@pytest.mark.parametrize("case", CASES)
def test_rows_and_vocabulary_are_mergekits(written: Path, tmp_path: Path, case: str) -> None:
    weights, base, tokenizer = CASES[case]
    theirs = written / f"out{list(CASES).index(case)}"
    keys = with_paths(tokenizer, f"{written}/")
    wish = tokenizer_wish(keys.get("tokenizer_source"), keys.get("tokenizer"))
    assert wish is not None
    views = apply_tokenizer(
        [open_checkpoint(written / name) for name in MODELS],
        None if base is None else list(MODELS).index(base),
        wish,
    )
    merge_views(views, tmp_path / "out")
    ours, expected = loaded_vocabulary(tmp_path / "out"), loaded_vocabulary(theirs)
    assert ours.keys() == expected.keys()
    if "union" not in keys.get("tokenizer_source", "union"):
        assert ours == expected, "the numbers too"
    for name in (EMBEDDING, HEAD):
        stacked = [read_tensor(view, name).double() for view in views]
        mean = sum(w * t for w, t in zip(weights, stacked, strict=True)) / sum(weights)
        found = read_checkpoint(theirs)[name]
        assert mean.shape == found.shape
        for token, row in rows_by_token(theirs, name).items():
            assert torch.allclose(mean[ours[token]], row.double(), rtol=1e-6, atol=1e-6), token
        padding = found[len(expected) :].double()
        assert torch.allclose(mean[len(ours) :], padding, rtol=1e-6, atol=1e-6)
    vocabulary = json.loads((tmp_path / "out/config.json").read_text())["vocab_size"]
    assert vocabulary == json.loads((theirs / "config.json").read_text())["vocab_size"]
