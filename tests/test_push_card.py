"""The card of a merge on the Hub, and the commands that bring it there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import streammerge
from tests.support.adapters import factors, write_adapter
from tests.support.checkpoints import random_tensor, write_checkpoint
from tests.support.cli import in_process
from tests.support.hub import Hub
from tests.support.targets import REPO, Merged, files_of, files_on, merge_once


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Merged:
    return merge_once(tmp_path_factory.mktemp("merged"))


def test_the_card_of_models_from_the_hub(hub: Hub, merged: Merged) -> None:
    for name, model in zip(("org/model-a", "org/model-b"), merged.models, strict=True):
        hub.create(name, Path(model))
        hub.commit(name, {"README.md": "---\nlicense: apache-2.0\n---\nhello\n"})
    streammerge.average(["org/model-a", "org/model-b"], f"hf://{REPO}", weights=[3, 1])
    card = ModelCard(hub.read(REPO, "README.md").decode())
    data = card.data.to_dict()
    assert data["base_model"] == ["org/model-a", "org/model-b"]
    assert data["base_model_relation"] == "merge"
    assert data["license"] == "apache-2.0"
    assert {"merge", "streammerge"} <= set(data["tags"])
    assert data["library_name"] == "transformers"
    assert hub.head("org/model-a") in card.text
    assert "0.75" in card.text
    assert "0.25" in card.text


def test_an_adapter_is_named_beside_its_model(hub: Hub, tmp_path: Path) -> None:
    tensors = {"m.weight": random_tensor((8, 6), torch.bfloat16, 1)}
    base = write_checkpoint(tmp_path / "mine/base", tensors)
    adapter = write_adapter(tmp_path / "mine/adapter", factors("m", 8, 6))
    hub.create("org/base", base)
    hub.create("org/adapter", adapter)
    models = ["org/base+org/adapter", f"org/base+{adapter}", f"{base}+org/adapter"]
    streammerge.average(models, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.to_dict()["base_model"] == ["org/base", "org/adapter", "adapter", "base"]
    base_at, adapter_at = (f"{name} at `{hub.head(name)}`" for name in ("org/base", "org/adapter"))
    assert f"| {base_at} + {adapter_at} |" in card.text
    assert f"| {base_at} + adapter |" in card.text
    assert "| base + org/adapter |" in card.text


def test_the_token_gets_into_no_file(
    hub: Hub, merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    token = os.environ["HF_TOKEN"]
    monkeypatch.delenv("HF_TOKEN")
    for words in (["--token", token], [f"--token={token}"]):
        command = ["average", *merged.models, "-o", tmp_path / "out", "--push-to-hub", REPO]
        done = in_process(capsys, *command, "--overwrite", *words)
        assert done.code == 0, done.err
        assert token not in done.out + done.err
        for files in (files_of(tmp_path / "out"), files_on(hub)):
            assert not [name for name, data in files.items() if token.encode() in data]
            assert b"--push-to-hub" in files["README.md"]


def test_the_commands(hub: Hub, merged: Merged, capsys: Any) -> None:
    done = in_process(capsys, "push", merged.folder, REPO)
    assert done.code == 0, done.err
    assert f"{REPO}@main: pushed in one commit" in done.out
    assert hub.head(REPO) in done.out
    done = in_process(capsys, "push", merged.folder, REPO, "--json")
    assert f'"commit": "{hub.head(REPO)}"' in done.out
    assert '"new": false' in done.out
    done = in_process(capsys, "average", *merged.models, "-o", "hf://me/second", "--private")
    assert done.code == 0, done.err
    assert "hf://me/second" in done.out
    assert hub.repositories["me/second"].private
    done = in_process(capsys, "push", merged.folder, "org/theirs")
    assert done.code == 1
    assert "namespaces" in done.err
    assert "Traceback" not in done.err
