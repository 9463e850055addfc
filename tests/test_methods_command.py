"""`streammerge methods`, and docs/methods.md: both say what the functions say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from streammerge.cli.show_methods import count, default
from streammerge.methods import METHODS, merge_method
from tests.support.cli import in_process

DOCS = Path(__file__).parents[1] / "docs" / "methods.md"


def row(name: str) -> str:
    """The line of a method in docs/methods.md."""
    method = METHODS.get(name)
    parameters = ", ".join(
        f"`{p.name}`{'*' if p.each else ''} = {default(p)}".replace("= must be given", "")
        for p in method.parameters.values()
    )
    names = ", ".join(f"`{n}`" for n in (name, *method.aliases))
    base = {"none": "no", "optional": "may", "required": "yes"}[method.base]
    paper = f"[{method.paper}](https://arxiv.org/abs/{method.paper})" if method.paper else ""
    summary = method.summary.replace("|", "\\|")
    reads = method.passes + 1
    cells = (names, summary, count(method), base, parameters, reads, paper)
    return re.sub(r" +", " ", f"| {' | '.join(map(str, cells))} |")


@pytest.mark.parametrize("name", [n for n in METHODS if not n.endswith("_of_test")])
def test_the_docs_say_what_the_function_says(name: str) -> None:
    assert row(name) in DOCS.read_text().split("\n")


def test_the_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    listed = in_process(capsys, "methods").out
    assert all(name in listed for name in METHODS if not name.endswith("_of_test"))


def test_one_method_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    told = in_process(capsys, "methods", "ties").out
    for word in ("density", "a number in [0, 1], for each model", "lambda", "2306.01708"):
        assert word in told


def test_json_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(in_process(capsys, "methods", "slerp", "--json").out)
    assert told["slerp"]["parameters"]["t"]["required"]
    assert told["slerp"]["base_model"] == "required"


def test_an_unknown_name_gets_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    done = in_process(capsys, "methods", "tise")
    assert done.code == 1
    assert "did you mean 'ties'" in done.err


def test_a_method_of_the_users_own_is_explained_by_its_docstring() -> None:
    @merge_method("explained_of_test")
    def explained(tensors: list[torch.Tensor], *, factor: float = 2.0) -> torch.Tensor:
        """What it does."""
        return tensors[0] * factor

    assert METHODS.get("explained_of_test").parameters["factor"].default == 2.0
    assert METHODS.get("explained_of_test").summary == "What it does."
