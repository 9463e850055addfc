"""docs/python.md: every example runs, in order, and says what is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge as sm
from streammerge.methods import METHODS

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METHODS, "_items", dict(METHODS._items))  # the page registers one
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_the_names_that_the_page_offers_are_there() -> None:
    page = PAGE.read_text()
    for name in set(re.findall(r"`?sm\.(\w+)", page)):
        assert name in sm.__all__, name
    own = set(re.findall(r'@sm\.merge_method\("(\w+)"', page))
    for method in set(re.findall(r'merge_modules\([^)]*?"([a-z_]+)"[,)]', page)) - own:
        METHODS.get(method)


@pytest.mark.parametrize("name", ["simple_average", "weighted_average", "task_arithmetic"])
def test_the_methods_of_fusionbench_are_known_by_their_names(name: str) -> None:
    models = {n: {"w": torch.ones(2) * k} for k, n in enumerate(("_pretrained_", "a", "b"))}
    merged = sm.merge_modules(models, name)
    assert merged["w"].tolist() == ([1.5, 1.5] if "average" in name else [3, 3])
