"""config.json for another number of layers, without a table of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from streammerge.views.layercount import OutputLayer, with_layers

CONFIGS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "the usual": ({"num_hidden_layers": 4}, "model.layers", {"num_hidden_layers": 2}),
    "GPT-2": ({"n_layer": 4, "n_head": 4}, "h", {"n_layer": 2, "n_head": 4}),
    "a text and a vision tower": (
        {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 4}},
        "vision_model.encoder.layers",
        {"text_config": {"num_hidden_layers": 4}, "vision_config": {"num_hidden_layers": 2}},
    ),
    "a vision model alone": (
        {"num_hidden_layers": 4},
        "vision_model.encoder.layers",
        {"num_hidden_layers": 2},
    ),
    "a decoder": (
        {"num_layers": 4, "num_decoder_layers": 4},
        "decoder.block",
        {"num_layers": 4, "num_decoder_layers": 2},
    ),
    "an encoder": (
        {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
        "model.encoder.layers",
        {"encoder_layers": 2, "decoder_layers": 4, "num_hidden_layers": 2},
    ),
    "lists by layer": (
        {"num_hidden_layers": 4, "layer_types": ["w", "x", "y", "z"], "sizes": [1, 2, 3, 4]},
        "model.layers",
        {"num_hidden_layers": 2, "layer_types": ["z", "x"], "sizes": [1, 2, 3, 4]},
    ),
    "numbers of layers": (
        {"num_hidden_layers": 4, "mlp_only_layers": [1, 2]},
        "model.layers",
        {"num_hidden_layers": 2, "mlp_only_layers": [1]},
    ),
}


@pytest.mark.parametrize(("config", "stack", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_the_config_says_how_many_layers_there_are(
    config: Mapping[str, Any], stack: str, expected: Mapping[str, Any]
) -> None:
    layers = [OutputLayer(config, number) for number in (3, 1)]
    assert with_layers(config, stack, 4, layers) == (expected, [])


def test_a_config_that_cannot_be_rewritten_is_not_passed_over_in_silence() -> None:
    layers = [OutputLayer({}, 0)] * 3
    config, notes = with_layers({"blocks": 2}, "h", 2, layers)
    assert config == {"blocks": 2}
    assert "it has 3 now" in notes[0]
    _, notes = with_layers({"n_layer": 2, "first_k_dense_replace": 1}, "h", 2, layers)
    assert "first_k_dense_replace = 1" in notes[0]
    assert with_layers({}, "h", 2, layers) == ({}, [])
