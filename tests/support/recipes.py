"""Recipes as text, read; and models that only have names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import torch

from streammerge.recipe import Recipe, load_recipe
from tests.support.checkpoints import (
    Config,
    Tensors,
    add_side_files,
    random_tensor,
    write_checkpoint,
)

EVERYTHING = """
merge_method: dare_ties
base_model: org/base@v1.0
dtype: bfloat16
out_dtype: float32
compute_dtype: float64
seed: 7
chat_template: chatml
tokenizer:
  source: union
  pad_to_multiple_of: 64
  embeddings: ["*.embed.weight"]
  tokens:
    <s>: {source: {kind: zero}}
    "[PAD]":
      source: {kind: model_token, model: path/to/a, token_id: 3}
      force: true
    x: {source: org/base@v1.0}
models:
  - model: path/to/a
    parameters: {weight: 0.3, density: [0.1, 0.5]}
  - model: org/b+org/adapter@main
    parameters:
      weight:
        - filter: mlp
          value: [0, 1]
        - value: 1e-2
parameters: {normalize: true}
layers: ["model.layers.*"]
rules:
  - tensors: "*.norm.*"
    method: linear
    parameters: {weight: 1}
  - tensors: ["*.bias"]
    action: keep
    model: path/to/a
skip: "*.rotary*"
keep: ["lm_head.*"]
side_files_from: path/to/a
"""
SLICES = """
merge_method: slerp
slices:
  - sources:
      - {model: a, layer_range: [0, 8], parameters: {x: 1}}
      - {model: b, layer_range: [8, 16]}
    base_model: a
    parameters: {t: [0, 1]}
  - sources:
      - {model: b, layer_range: [0, 2]}
      - {model: a, layer_range: [0, 2]}
    base_model: a
parameters: {t: 0.5}
"""
MODULES = """
merge_method: linear
modules:
  vision:
    tensors: "visual.*"
    models: [a, {model: b, parameters: {weight: 2}}]
    parameters: {weight: 1}
  default:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
"""

MATRICES = ("self_attn.q_proj", "mlp.up_proj")


def read(folder: Path, text: str, name: str = "recipe.yml") -> Recipe:
    """Write a recipe to a file and read it."""
    path = folder / name
    path.write_text(dedent(text))
    return load_recipe(path)


def layer_names(layers: int, stack: str = "model.layers") -> list[str]:
    """Names of the matrices of some layers."""
    return [f"{stack}.{i}.{matrix}.weight" for i in range(layers) for matrix in MATRICES]


def llama_names(layers: int) -> list[str]:
    """Names of a small language model's tensors."""
    outside = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    return [*outside, *layer_names(layers)]


def named_tensors(names: Sequence[str], seed: int) -> Tensors:
    """A small bf16 matrix for each name, no two alike."""
    return {n: random_tensor((4, 4), torch.bfloat16, seed * 1000 + i) for i, n in enumerate(names)}


def write_named(folder: Path, names: Sequence[str], seed: int, config: Config) -> Tensors:
    """Write a checkpoint with these names; return its tensors."""
    tensors = named_tensors(names, seed)
    write_checkpoint(folder, tensors)
    add_side_files(folder, config)
    return tensors
