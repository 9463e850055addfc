"""Recipes as mergekit 0.1.5 resolves them: every parameter of every tensor, and its sources."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from streammerge.checkpoint import Checkpoint, open_checkpoint
from streammerge.inputs import open_inputs
from streammerge.recipe import Recipe, Treatments
from streammerge.recipe.layers import comes_before_layers
from streammerge.views.stacked import Stacked
from tests.support.mergekit_recipes import RECIPES, random_recipe
from tests.support.recipes import read, write_named

ROOT = Path(__file__).parent.parent
MERGEKIT = ROOT / ".venv-mergekit" / "bin" / "python"
SCRIPT = Path(__file__).parent / "support" / "mergekit_settings.py"
pytestmark = pytest.mark.skipif(not MERGEKIT.exists(), reason="mergekit is not installed")

LLAMA = [
    "input_layernorm",
    "post_attention_layernorm",
    *(f"self_attn.{kind}_proj" for kind in "qkvo"),
    *(f"mlp.{kind}_proj" for kind in ("up", "gate", "down")),
]
LLAMA_CONFIG: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
LLAMA_SIZES = {
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "vocab_size": 4,
}
T5_CONFIG = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "num_layers": 3,
    "num_decoder_layers": 4,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints a, b and c of six layers, t1 and t2 of an encoder-decoder."""
    folder = tmp_path_factory.mktemp("models")
    outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names = [f"model.layers.{i}.{part}.weight" for i in range(6) for part in LLAMA]
    config = LLAMA_CONFIG | LLAMA_SIZES | {"num_hidden_layers": 6}
    for seed, name in enumerate("abc"):
        write_named(folder / name, outside + names, seed, config)
    ends = ["shared.weight", "encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"]
    blocks = _t5_names("encoder", 3) + _t5_names("decoder", 4)
    for seed, name in enumerate(("t1", "t2")):
        write_named(folder / name, ends + blocks, 10 + seed, T5_CONFIG)
    return folder


def _t5_names(stack: str, blocks: int) -> list[str]:
    parts = [f"SelfAttention.{kind}" for kind in "kqvo"] + ["layer_norm"]
    return [f"{stack}.block.{i}.layer.0.{part}.weight" for i in range(blocks) for part in parts]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return RECIPES | {f"random {seed}": random_recipe(seed) for seed in range(40)}


@pytest.fixture(scope="module")
def theirs(models: Path, texts: dict[str, str]) -> dict[str, Any]:
    """What mergekit says of each recipe; one process for all."""
    cases = [{"recipe": text} for text in texts.values()]
    done = subprocess.run(
        [MERGEKIT, SCRIPT],
        input=json.dumps(cases),
        cwd=models,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(texts, json.loads(done.stdout), strict=True))


ALL = [*RECIPES, *(f"random {seed}" for seed in range(40))]


@pytest.mark.parametrize("name", ALL)
def test_as_mergekit_resolves_it(
    name: str,
    models: Path,
    texts: dict[str, str],
    theirs: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    expected = theirs[name]
    assert "error" not in expected, expected
    recipe = read(tmp_path, texts[name])
    opened: dict[str, Checkpoint] = {r: open_checkpoint(r) for r in recipe.references}
    inputs = open_inputs(recipe, opened.__getitem__)
    names = {n for checkpoint in inputs for n in checkpoint.tensors}
    treatments = recipe.treatments(names)
    assert names <= expected.keys()
    for tensor, wanted in expected.items():
        if tensor in names:
            _compare(recipe, treatments, tensor, wanted, inputs, opened)
        else:  # mergekit's table names all that a model of the family may have
            assert not any(w["tensor"] in opened[w["model"]].tensors for w in wanted["inputs"])


def _compare(
    recipe: Recipe,
    treatments: Treatments,
    tensor: str,
    wanted: dict[str, Any],
    inputs: list[Checkpoint],
    opened: dict[str, Checkpoint],
) -> None:
    found = treatments[tensor]
    ours = {key: value for key, value in found.parameters.items() if key in wanted["shared"]}
    assert ours == {k: pytest.approx(v) for k, v in wanted["shared"].items() if k in ours}, tensor
    sources = {_source(inputs[i], tensor, opened): i for i in found.inputs}
    assert sources.keys() == {(w["model"], w["tensor"]) for w in wanted["inputs"]}
    for source in wanted["inputs"]:
        position = sources[source["model"], source["tensor"]]
        if source["model"] == wanted["base"] and found.base is not None:
            assert position == found.base
        own = found.each[position] if position < len(found.each) else {}
        for key, value in source["settings"].items():
            said = own.get(key, found.parameters.get(key))
            if said is not None:  # else the method's default, which is not the recipe's to know
                assert said == pytest.approx(value), (tensor, source["model"], key)


def _source(checkpoint: Checkpoint, tensor: str, opened: dict[str, Checkpoint]) -> tuple[str, str]:
    """The model and the name there of what an input shows as a tensor."""
    if not isinstance(checkpoint, Stacked):
        return checkpoint.label, tensor
    here = checkpoint.locate(tensor)
    for label, model in opened.items():
        for name in model.tensors:
            there = model.locate(name)
            if here.file.endswith(f":{label}/{there.file}") and here.offset == there.offset:
                return label, name
    raise AssertionError(tensor)


def test_what_goes_with_the_first_layers_is_what_its_tables_say() -> None:
    (tables,) = (MERGEKIT.parent.parent / "lib").glob(
        "*/site-packages/mergekit/_data/architectures"
    )
    wrong, seen = set(), 0
    for path in tables.glob("*.json"):
        table = json.loads(path.read_text())
        parts = [part["architecture"] for part in table.get("modules", {}).values()] or [table]
        for part in parts:
            # A part without true layers is merged whole, whichever its tensors go with.
            layered = part["layer_templates"]["weights"] and not part.get("override_num_layers")
            for side in ("pre_weights", "post_weights") if layered else ():
                for weight in part[side]:
                    seen += 1
                    if comes_before_layers(weight["name"]) != (side == "pre_weights"):
                        wrong.add(weight["name"])
    assert seen > 200
    assert wrong == set()
