"""Recipes in mergekit's format, of all kinds: by hand, and at random."""

from __future__ import annotations

import json
import random
from typing import Any

RECIPES = {
    "gradients": """
        models:
          - {model: a, parameters: {weight: [0, 0.3, 1]}}
          - {model: b, parameters: {weight: [1e-2, 5]}}
        merge_method: linear
        parameters: {normalize: false}
        """,
    "filters": """
        models:
          - model: a
            parameters:
              weight:
                - {filter: mlp, value: [0.1, 0.9]}
                - {filter: layers.3., value: 7}
                - {filter: "*", value: 0.5}
          - model: b
            parameters: {weight: [{filter: self_attn, value: 2}]}
        merge_method: linear
        parameters: {weight: [{filter: norm, value: 3}, {value: 4}]}
        """,
    "slerp": """
        slices:
          - sources:
              - {model: a, layer_range: [0, 6]}
              - {model: b, layer_range: [0, 6]}
        merge_method: slerp
        base_model: a
        parameters:
          t:
            - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
            - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
            - {value: 0.5}
        dtype: bfloat16
        """,
    "ties with the base among the models": """
        models:
          - {model: c}
          - {model: a, parameters: {density: [1, 0.7, 0.1], weight: 1.0}}
          - {model: b, parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}}
        merge_method: ties
        base_model: c
        parameters: {normalize: true, int8_mask: true, lambda: 0.5}
        """,
    "della, its own parameters": """
        models:
          - {model: a, parameters: {weight: 1, density: 0.4, epsilon: [0.1, 0.2]}}
          - {model: b, parameters: {weight: 0.5}}
        merge_method: della
        base_model: c
        parameters: {density: 0.9, lambda: [{filter: mlp, value: 1.1}], rescale: false}
        """,
    "a frankenmerge": """
        slices:
          - sources: [{model: a, layer_range: [0, 4]}]
          - sources: [{model: b, layer_range: [2, 6], parameters: {scale: [1, 0]}}]
          - sources: [{model: a, layer_range: [3, 6]}]
            parameters: {scale: [{filter: layers.4., value: 3}, {filter: o_proj, value: 0.0}]}
          - sources: [{model: c, layer_range: [5, 6]}]
            parameters: {scale: [0.1, 0.9]}
        merge_method: passthrough
        dtype: bfloat16
        """,
    "layers of one from other layers of the other": """
        slices:
          - sources:
              - model: a
                layer_range: [0, 3]
                parameters: {weight: [{filter: layers.1., value: 5}]}
              - model: b
                layer_range: [3, 6]
                parameters: {weight: [{filter: layers.4., value: 6}]}
          - sources:
              - {model: b, layer_range: [0, 2]}
              - {model: a, layer_range: [4, 6]}
            parameters: {weight: 0.7}
        merge_method: linear
        parameters: {weight: 1, normalize: [false, true]}
        """,
    "a base model in each slice": """
        slices:
          - sources:
              - {model: b, layer_range: [0, 3], parameters: {weight: 0.2}}
              - {model: a, layer_range: [1, 4]}
            base_model: a
          - sources:
              - {model: c, layer_range: [3, 6]}
              - {model: b, layer_range: [3, 6], parameters: {weight: [0, 1]}}
        merge_method: task_arithmetic
        base_model: c
        """,
    "a module": """
        modules:
          default:
            slices:
              - sources:
                  - model: a
                    layer_range: [0, 6]
                    parameters: {weight: [{filter: norm, value: 9}]}
                  - {model: b, layer_range: [0, 6]}
                parameters: {weight: [{filter: mlp, value: 8}]}
            parameters: {weight: [{filter: self_attn, value: [0, 1]}], normalize: false}
        merge_method: linear
        parameters: {weight: 5, normalize: true}
        """,
    "several models in a module": """
        modules:
          default:
            models:
              - {model: a, parameters: {weight: [0, 1]}}
              - {model: b, parameters: {weight: 0.25}}
            parameters: {normalize: true}
        merge_method: ties
        base_model: c
        parameters: {normalize: false, density: [0.1, 1]}
        """,
    "an encoder and a decoder": """
        models:
          - {model: t1, parameters: {weight: [0, 1, 5]}}
          - {model: t2, parameters: {weight: [{filter: decoder, value: [1, 0]}, {value: [0, 1]}]}}
        merge_method: linear
        """,
    "an encoder and a decoder as modules": """
        modules:
          encoder:
            models:
              - {model: t1, parameters: {weight: [0, 1]}}
              - {model: t2, parameters: {weight: 1}}
          decoder:
            slices:
              - sources:
                  - {model: t2, layer_range: [0, 2], parameters: {weight: [3, 4]}}
                  - {model: t1, layer_range: [2, 4], parameters: {weight: 1}}
              - sources:
                  - {model: t1, layer_range: [0, 2], parameters: {weight: 1}}
                  - {model: t2, layer_range: [0, 2], parameters: {weight: 2}}
          shared:
            models: [{model: t2, parameters: {weight: 1}}]
        merge_method: linear
        """,
}


def random_recipe(seed: int) -> str:
    """A linear merge of three models with settings of all kinds in all scopes."""
    draw = random.Random(seed)

    def value() -> Any:
        numbers = [round(draw.uniform(-2, 2), 3) for _ in range(draw.randint(1, 5))]
        return draw.choice([numbers, numbers[0], draw.randint(0, 9)])

    def setting() -> Any:
        if draw.random() < 0.5:
            return value()
        words = ("mlp", "self_attn", "layers.2.", "norm", "embed", "q_proj", "*", "nothing")
        return [{"filter": draw.choice(words), "value": value()} for _ in range(draw.randint(1, 4))]

    def parameters(chance: float) -> dict[str, Any]:
        return {"weight": setting()} if draw.random() < chance else {}

    everyone: dict[str, Any] = {"weight": value()}
    recipe: dict[str, Any] = {"merge_method": "linear", "parameters": everyone}
    if draw.random() < 0.4:
        recipe["models"] = [{"model": m, "parameters": parameters(0.6)} for m in "abc"]
        return json.dumps(recipe)
    slices = []
    for _ in range(draw.randint(1, 3)):
        length = draw.randint(1, 6)
        sources = []
        for model in draw.sample("abc", 2):
            first = draw.randint(0, 6 - length)
            sources.append(
                {
                    "model": model,
                    "layer_range": [first, first + length],
                    "parameters": parameters(0.5),
                }
            )
        slices.append({"sources": sources, "parameters": parameters(0.3)})
    return json.dumps({**recipe, "slices": slices})
