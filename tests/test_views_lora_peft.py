"""Adapters written by peft, applied by us and by peft (`merge_and_unload`) in float32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from streammerge.checkpoint import as_read, open_checkpoint
from streammerge.storage.local import LocalStorage
from streammerge.views.lora import LoraApplied
from tests.support.checkpoints import read_checkpoint
from tests.support.oracle import needs_oracle, run_oracle
from tests.support.views import read_tensor

pytestmark = [needs_oracle, pytest.mark.timeout(300)]  # one run of the oracle for all

CASES = {
    "plain": ("llama", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}),
    "rslora and patterns": (
        "llama",
        {
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, r"^model.layers.1.mlp\.\w+": 9},
            "alpha_pattern": {"1.self_attn.(q|k)_proj": 11},
        },
    ),
    "embeddings and head": (
        "llama",
        {"r": 3, "target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    ),
    "modules to save, some layers": (
        "llama",
        {
            "r": 3,
            "target_modules": ["k_proj"],
            "modules_to_save": ["norm", "lm_head"],
            "layers_to_transform": [1],
        },
    ),
    "Conv1D": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj", "wte"]}),
    "all biases": ("gpt2", {"r": 4, "target_modules": ["c_fc"], "bias": "all"}),
    "convolutions": ("resnet", {"r": 4, "target_modules": ["convolution"]}),
}

SCRIPT = """
import json, sys, torch
from pathlib import Path
import peft, transformers
root, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
small = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)
makers = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**small)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_positions=8, n_embd=16, n_layer=2, n_head=2)),
    "resnet": lambda: transformers.ResNetModel(transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
}
for number, (kind, config) in enumerate(cases):
    torch.manual_seed(number)
    model = makers[kind]()
    model.save_pretrained(root / f"{number}/base")
    tuned = peft.get_peft_model(model, peft.LoraConfig(**config))
    for name, value in tuned.named_parameters():
        if value.requires_grad:
            torch.nn.init.normal_(value, std=0.3)
    tuned.save_pretrained(root / f"{number}/adapter")
    tuned.merge_and_unload().save_pretrained(root / f"{number}/merged")
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("peft")
    run_oracle(SCRIPT, root, json.dumps(list(CASES.values())))
    return root


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_pefts(written: Path, case: str) -> None:
    folder = written / str(list(CASES).index(case))
    base = open_checkpoint(folder / "base")
    view = LoraApplied(base, LocalStorage(folder / "adapter"))
    merged = read_checkpoint(folder / "merged")
    assert view.tensors.keys() == merged.keys()
    changed = 0
    for name, expected in merged.items():
        assert as_read(view, name).shape == expected.shape
        found = read_tensor(view, name)
        changed += not torch.equal(found, read_tensor(base, name))
        assert torch.allclose(found, expected, rtol=2e-6, atol=2e-6), name
    assert changed > 1
