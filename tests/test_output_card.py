"""The model card, and the machine-readable account of the merge."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import streammerge
from tests.support.adapters import factors, write_adapter
from tests.support.checkpoints import (
    add_side_files,
    like,
    random_tensor,
    random_tensors,
    write_checkpoint,
)
from tests.support.outputs import manifest, sha256, shards_of


def pair(root: Path) -> list[Path]:
    first = random_tensors(1)
    models = {"a": first, "b": like(first, 2)}
    return [add_side_files(write_checkpoint(root / n, m)) for n, m in models.items()]


def average(paths: list[Path], out: Path, **options: Any) -> streammerge.Result:
    return streammerge.average([str(p) for p in paths], str(out), **options)


def test_the_model_card_says_what_was_merged_and_how(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    for path in paths:
        (path / "README.md").write_text("---\nlicense: mit\n---\nhello\n")
    average(paths, tmp_path / "out", weights=[0.7, 0.3])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert len(data["base_model"]) == 2
    assert all(isinstance(name, str) for name in data["base_model"])
    assert data["base_model_relation"] == "merge"
    assert {"merge", "streammerge"} <= set(data["tags"])
    assert data["license"] == "mit"
    assert "0.7" in card.text
    assert "0.3" in card.text
    assert "streammerge average" in card.text
    assert "hello" not in card.text


def test_models_of_this_machine_are_named_by_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"m.weight": random_tensor((8, 6), torch.bfloat16, 1)}
    for name in ("a/base", "a/other"):
        write_checkpoint(tmp_path / name, tensors)
    write_adapter(tmp_path / "b/adapter", factors("m", 8, 6))
    average([Path("a/base"), Path("a/base+b/adapter"), Path("a/other")], tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["base_model"] == ["base", "adapter", "other"]
    assert "Merge of 3 models" in card.text
    assert "| base + adapter |" in card.text


@pytest.mark.parametrize(
    "front",
    [
        "license: mit",
        'license: "mit"',
        "license: 'mit'  ",
        "tags:\r\n- x\r\nlicense: mit\r",
        "license: mit\nmodel-index:\n" + "- name: x\n  results: [{a: {b: 1}}]\n" * 20_000,
    ],
    ids=lambda front: front[:20],
)
def test_the_license_is_found_however_it_is_written(tmp_path: Path, front: str) -> None:
    paths = pair(tmp_path)
    for path in paths:
        (path / "README.md").write_text(f"---\n{front}\n---\nlicense: other\n", newline="")
    average(paths, tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()["license"] == "mit"


def test_the_model_card_claims_no_license_that_the_inputs_do_not_share(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    for path, license_name in zip(paths, ("mit", "apache-2.0"), strict=True):
        (path / "README.md").write_text(f"---\nlicense: {license_name}\n---\n")
    average(paths, tmp_path / "out")
    assert "license" not in ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()


@pytest.mark.parametrize(
    "text",
    ["---\nlicense: [\n---\n", "---\n- 1\n---\n", "license: mit", "---", "---\nlicense: mit"],
)
def test_a_broken_card_of_an_input_does_no_harm(tmp_path: Path, text: str) -> None:
    paths = pair(tmp_path)
    for path in paths:
        (path / "README.md").write_text(text)
    average(paths, tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert "license" not in data
    assert data["base_model_relation"] == "merge"


def test_the_account_has_the_digests_of_the_shards(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    out = tmp_path / "out"
    result = average(paths, out, max_shard_size="100KB", weights=[2, 1])
    account = manifest(out)
    listed = {shard["file"]: shard for shard in account["shards"]}
    assert set(listed) == {p.name for p in shards_of(out)}
    assert len(listed) > 1
    for path in shards_of(out):
        assert listed[path.name]["sha256"] == sha256(path)
    assert [(s.file, s.bytes, s.sha256) for s in result.shards] == [
        (p.name, p.stat().st_size, sha256(p)) for p in shards_of(out)
    ]
    plan = streammerge.plan_average(
        [str(p) for p in paths], str(tmp_path / "x"), weights=[2, 1], max_shard_size="100KB"
    )
    assert account["fingerprint"] == plan.fingerprint()
    assert len(account["inputs"]) == 2
    text = (out / "streammerge.json").read_text()
    assert all(str(p) in text or p.name in text for p in paths)


def test_digests_are_those_of_hashlib_for_a_shard_of_many_blocks(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(9_000_001, dtype=torch.float32)}
    paths = [write_checkpoint(tmp_path / n, tensors) for n in "ab"]
    result = average(paths, tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert result.shards[0].sha256 == hashlib.sha256(content).hexdigest()
    assert content == (paths[0] / "model.safetensors").read_bytes()
