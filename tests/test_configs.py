"""Every recipe in configs/ runs as it is, on tiny checkpoints that lie where it looks for them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import streammerge
from streammerge.recipe import load_recipe
from tests.support.checkpoints import (
    Tensors,
    add_side_files,
    like,
    random_tensor,
    read_checkpoint,
    write_checkpoint,
)
from tests.support.recipes import layer_names, llama_names

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yml"))
LAYERS = 32
NORM = "model.layers.0.input_layernorm.weight"


def _family(names: list[str], folders: list[str], config: dict[str, object]) -> None:
    """Write a base model and fine-tunes of it."""
    base: Tensors = {n: random_tensor((8, 8), torch.bfloat16, i) for i, n in enumerate(names)}
    for seed, folder in enumerate(folders):
        model = base if seed == 0 else like(base, seed)
        add_side_files(write_checkpoint(Path(folder), model), {"dtype": "bfloat16", **config})


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    kinds = ("base", "chat", "code", "math")
    names = [*llama_names(LAYERS), NORM]
    _family(names, [f"models/{kind}" for kind in kinds], {"num_hidden_layers": LAYERS})
    towers = layer_names(3, "vision_model.encoder.layers") + layer_names(
        2, "text_model.encoder.layers"
    )
    outside = ["vision_model.embeddings.weight", "text_projection.weight", "logit_scale"]
    tasks = ("base", "sun397", "cars", "svhn")
    _family(towers + outside, [f"clip/{task}" for task in tasks], {})
    steps = range(500, 5001, 500)
    _family(llama_names(2), [f"run/checkpoint-{s}" for s in steps], {"num_hidden_layers": 2})
    return tmp_path


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_it_runs_as_it_is(config: Path, models: Path) -> None:
    done = streammerge.merge(config, "out")
    recipe = load_recipe(config)
    first = read_checkpoint(Path(recipe.references[0]))
    found = read_checkpoint(Path("out"))
    assert first.keys() <= found.keys()
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any(not torch.equal(found[name], tensor) for name, tensor in first.items())
    assert done.parameters == sum(tensor.numel() for tensor in found.values())
    assert not streammerge.verify("out", recompute=5).findings


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_it_says_what_it_does_and_how_to_run_it(config: Path) -> None:
    comment = "".join(re.findall(r"^#.*\n", config.read_text(), re.M))
    assert f"streammerge merge configs/{config.name} -o " in comment
    readme = (config.parent / "README.md").read_text()
    assert f"| `{config.name}` |" in readme


def test_the_frankenmerge_is_as_deep_as_it_says(models: Path) -> None:
    config = next(path for path in CONFIGS if path.stem == "frankenmerge")
    streammerge.merge(config, "out")
    found = read_checkpoint(Path("out"))
    chat, code = (read_checkpoint(models / "models" / name) for name in ("chat", "code"))
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer in range(48):
        source, old = (chat, layer) if layer < 24 else (code, layer - 16)
        assert torch.equal(found[name.format(layer)], source[name.format(old)])
