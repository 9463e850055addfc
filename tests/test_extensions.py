"""Methods that users bring: from Python, from a file that a recipe names, never from an output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import streammerge
from streammerge.errors import RecipeError
from streammerge.methods import METHODS

PLUGIN = '''
from collections.abc import Sequence
import torch
from torch import Tensor
from streammerge import merge_method

@merge_method("{name}")
def largest(tensors: Sequence[Tensor], *, scale: float = 1.0) -> Tensor:
    """The element of largest magnitude, scaled."""
    stacked = torch.stack(list(tensors))
    return stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0] * scale
'''


def models(folder: Path) -> list[str]:
    paths = []
    for number in range(2):
        torch.manual_seed(number)
        path = folder / f"m{number}"
        path.mkdir()
        save_file({"w": torch.randn(40, 50)}, path / "model.safetensors", {"format": "pt"})
        paths.append(str(path))
    return paths


def recipe(folder: Path, method: str, plugin: Path | None) -> Path:
    lines = [f"merge_method: {method}", "parameters: {scale: 2}", "models:"]
    lines += [f"  - model: {path}" for path in models(folder)]
    lines += [f"plugins: [{plugin}]"] if plugin else []
    path = folder / "recipe.yml"
    path.write_text("\n".join(lines))
    return path


def test_a_recipe_names_a_file_with_a_method(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN.format(name="largest_of_test"))
    out = tmp_path / "out"
    streammerge.merge(recipe(tmp_path, "largest_of_test", plugin), out)
    a, b = (load_file(tmp_path / f"m{n}" / "model.safetensors")["w"] for n in range(2))
    expected = torch.where(b.abs() > a.abs(), b, a) * 2
    assert torch.equal(load_file(out / "model.safetensors")["w"], expected)
    assert METHODS.get("largest_of_test").summary == "The element of largest magnitude, scaled."


def test_recipes_inside_recipes_have_plugins_of_their_own(tmp_path: Path) -> None:
    a, b = models(tmp_path)
    text = f"merge_method: linear\nmodels: [{a}, {b}]"
    for depth in range(3):
        plugin = tmp_path / f"{depth}.py"
        plugin.write_text(PLUGIN.format(name=f"largest_{depth}_of_test"))
        (tmp_path / f"{depth}.yml").write_text(text)
        text = f"""
            merge_method: largest_{depth}_of_test
            models: [{tmp_path}/{depth}.yml]
            plugins: [{plugin}]
            parameters: {{scale: 2}}
            """
    (tmp_path / "recipe.yml").write_text(text)
    streammerge.merge(tmp_path / "recipe.yml", tmp_path / "out")
    inputs = [load_file(Path(model) / "model.safetensors")["w"].double() for model in (a, b)]
    expected = (sum(inputs) / 2 * 8).float()
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], expected)


def test_a_method_of_the_users_own_works_in_memory() -> None:
    @streammerge.merge_method("first_of_test", models=(2, 2))
    def first(tensors: list[torch.Tensor], *, unused: bool = False) -> torch.Tensor:
        """The first."""
        return tensors[0]

    a, b = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    merged = streammerge.merge_modules({"a": a, "b": b}, method="first_of_test")
    assert torch.equal(merged.weight, a.weight)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [(None, "no plug-in at"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "no merge method")],
    ids=["missing", "raising", "without the method"],
)
def test_a_plugin_that_does_not_work_is_refused(
    tmp_path: Path, text: str | None, pattern: str
) -> None:
    plugin = tmp_path / "mine.py"
    if text is not None:
        plugin.write_text(text)
    with pytest.raises(RecipeError, match=pattern):
        streammerge.merge(recipe(tmp_path, "nowhere_of_test", plugin), tmp_path / "out")


def test_verifying_never_runs_a_file_that_an_output_names(tmp_path: Path) -> None:
    plugin, ran = tmp_path / "mine.py", tmp_path / "ran"
    code = (
        PLUGIN.format(name="verified_of_test")
        + f"\nwith open({str(ran)!r}, 'a') as file:\n    file.write('x')\n"
    )
    plugin.write_text(code)
    streammerge.merge(recipe(tmp_path, "verified_of_test", plugin), tmp_path / "out")
    assert ran.read_text() == "x"
    streammerge.verify(tmp_path / "out", recompute="all")
    assert ran.read_text() == "x"


def test_an_installed_package_offers_methods(tmp_path: Path) -> None:
    """By an entry point: they are listed, explained and used without being named as plug-ins."""
    site = tmp_path / "site"
    (site / "mine-1.0.dist-info").mkdir(parents=True)
    (site / "mine.py").write_text(PLUGIN.format(name="largest_installed"))
    (site / "mine-1.0.dist-info" / "METADATA").write_text("Name: mine\nVersion: 1.0\n")
    points = "[streammerge.methods]\nmine = mine\n"
    (site / "mine-1.0.dist-info" / "entry_points.txt").write_text(points)
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "streammerge", *words]
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert "largest_installed" in run("methods")
    assert "The element of largest magnitude" in run("methods", "largest_installed")
    out = tmp_path / "out"
    run("merge", str(recipe(tmp_path, "largest_installed", None)), "-o", str(out), "--quiet")
    a, b = (load_file(tmp_path / f"m{n}" / "model.safetensors")["w"] for n in range(2))
    merged = load_file(out / "model.safetensors")["w"]
    assert torch.equal(merged, torch.where(b.abs() > a.abs(), b, a) * 2)
