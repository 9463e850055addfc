"""What only the plan can tell to be wrong is still said with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

import streammerge
from streammerge.errors import RecipeError
from tests.support.recipes import llama_names, read, write_named

CASES = {
    "a method": (
        """
        merge_method: linaer
        models: [a, b]
        """,
        "line 2: .*'linaer'; did you mean 'linear'",
    ),
    "a method of a rule": (
        """
        merge_method: linear
        models: [a, b]
        rules:
          - tensors: "*norm*"
            method: tise
        """,
        "line 6: .*'tise'; did you mean 'ties'",
    ),
    "a parameter of all models": (
        """
        merge_method: linear
        models: [a, b]
        parameters:
          weight: 1
          normalise: true
        """,
        "line 6: .*no parameter 'normalise'\nDid you mean 'normalize'",
    ),
    "a parameter of one model": (
        """
        merge_method: ties
        base_model: c
        models:
          - {model: a, parameters: {density: 0.5}}
          - model: b
            parameters:
              densty: 0.5
        """,
        "line 8: .*no parameter 'densty'\nDid you mean 'density'",
    ),
    "a value out of range, by name and layer": (
        """
        merge_method: ties
        base_model: c
        models:
          - {model: a, parameters: {density: 0.5}}
          - model: b
            parameters:
              density:
                - {filter: mlp, value: [0.5, 1.5]}
                - {value: 1}
        """,
        r"line 8: density is .*\nGive a number in \[0, 1\]",
    ),
    "a parameter of a source": (
        """
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 2]}
              - model: b
                layer_range: [0, 2]
                parameters: {wieght: 1}
        """,
        "line 8: .*no parameter 'wieght'",
    ),
    "one for all, said by one": (
        """
        merge_method: slerp
        base_model: a
        models:
          - a
          - {model: b, parameters: {t: 0.3}}
        """,
        "line 6: t of slerp is one for all models",
    ),
    "a parameter of the outer recipe, which the inner one has too": (
        """
        merge_method: linear
        models:
          - model:
              merge_method: slerp
              base_model: a
              models: [a, b]
              parameters: {t: 0.5}
            parameters:
              t: 1
          - c
        """,
        "line 10: .*no parameter 't'",
    ),
    "a rule for nothing": (
        """
        merge_method: linear
        models: [a, b]
        rules:
          - {tensors: "*bias*", action: skip}
        """,
        r"line 5: '\*bias\*' matches no tensor",
    ),
}


@pytest.mark.parametrize(("text", "pattern"), CASES.values(), ids=CASES)
def test_it_is_said_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        write_named(tmp_path / name, llama_names(2), seed, {"num_hidden_layers": 2})
    recipe = read(Path(), text)
    with pytest.raises(RecipeError, match=f"^recipe.yml, {pattern}"):
        streammerge.merge(recipe, "out")
    assert not Path("out").exists()
