"""NaN and Inf: counted for each input and for the output, and never let pass unasked."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from streammerge.errors import NonFiniteError, OutputError
from streammerge.methods import METHODS
from streammerge.outputs.shardfile import DirectoryShard
from tests.support.checkpoints import Tensors, random_tensors, read_checkpoint
from tests.support.cli import in_process
from tests.support.merging import refusal, write_all
from tests.support.outputs import manifest

SHAPES = ((7,), (129, 33), (64, 64), (100_003,))
NAMES = [f"block.{number}.bfloat16" for number in range(len(SHAPES))]


def models(bad: dict[tuple[int, str], int]) -> list[Tensors]:
    """Three models; in (model, name) so many elements are NaN or infinite, spread out."""
    made = [random_tensors(seed, shapes=SHAPES) for seed in (1, 2, 3)]
    for (number, name), count in bad.items():
        flat = made[number][name].view(-1)
        where = torch.linspace(0, len(flat) - 1, count).long()
        flat[where] = torch.tensor([math.nan, math.inf, -math.inf, math.nan] * count)[
            :count
        ].bfloat16()
    return made


BAD = {(0, NAMES[1]): 5, (1, NAMES[1]): 3, (1, NAMES[3]): 1001, (2, NAMES[2]): 64}


def counted(made: list[Tensors]) -> dict[str, int]:
    counts = [sum(int((~t.isfinite()).sum()) for t in model.values()) for model in made]
    return {f"m{number}": count for number, count in enumerate(counts) if count}


def by_folder(counts: dict[str, int]) -> dict[str, int]:
    return {Path(label).name: count for label, count in counts.items()}


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"io": "direct"}], ids=str)
def test_the_counts_are_those_of_inputs_and_output(tmp_path: Path, options: dict[str, Any]) -> None:
    made = models(BAD)
    paths, out = write_all(tmp_path, made), tmp_path / "out"
    result = streammerge.average(paths, out, allow_nonfinite=True, **options)
    assert by_folder(result.nonfinite_inputs) == counted(made) == {"m0": 5, "m1": 1004, "m2": 64}
    merged = read_checkpoint(out)
    wanted = {name: int((~tensor.isfinite()).sum()) for name, tensor in merged.items()}
    assert result.nonfinite == {name: count for name, count in wanted.items() if count}
    account = manifest(out)
    assert account["nonfinite"] == result.nonfinite
    assert account["nonfinite_inputs"] == result.nonfinite_inputs
    assert streammerge.verify(out, recompute="all").ok


def test_a_clean_merge_counts_nothing(tmp_path: Path) -> None:
    result = streammerge.average(write_all(tmp_path, models({})), tmp_path / "out")
    assert (result.nonfinite, result.nonfinite_inputs) == ({}, {})


def test_the_command_line_says_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, out = write_all(tmp_path, models(BAD)), tmp_path / "out"
    done = in_process(capsys, "average", *paths, "-o", out, "--allow-nonfinite", "--quiet")
    assert done.code == 0, done.err
    assert f"1,004 NaN or Inf read from {paths[1]}" in done.out
    assert f"1,001 NaN or Inf in {NAMES[3]}" in done.out


def interrupted(paths: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lets NaN pass and fails in its last shard."""
    finished: list[int] = []
    original = DirectoryShard.finish

    def finish(self: DirectoryShard) -> None:
        finished.append(1)
        if len(finished) == 4:
            raise OutputError("the disk is gone")
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryShard, "finish", finish)
        with pytest.raises(OutputError):
            streammerge.average(paths, out, max_shard_size="1KB", allow_nonfinite=True)


def test_an_interrupted_run_is_counted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = write_all(tmp_path, models(BAD)), tmp_path / "out"
    interrupted(paths, out, monkeypatch)
    result = streammerge.average(paths, out, max_shard_size="1KB", allow_nonfinite=True)
    whole = streammerge.average(
        paths, tmp_path / "whole", max_shard_size="1KB", allow_nonfinite=True
    )
    assert result.kept == 3
    assert result.nonfinite == whole.nonfinite
    assert result.nonfinite_inputs == whole.nonfinite_inputs


def test_a_run_that_refuses_nan_takes_over_no_shard_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, out = write_all(tmp_path, models(BAD)), tmp_path / "out"
    interrupted(paths, out, monkeypatch)
    with pytest.raises(NonFiniteError, match=r"block\.\d.* holds NaN or Inf"):
        streammerge.average(paths, out, max_shard_size="1KB")
    assert not (out / "model.safetensors.index.json").exists()
    streammerge.average(paths, out, max_shard_size="1KB", allow_nonfinite=True)
    assert streammerge.verify(out).ok


@pytest.mark.parametrize("shape", [(7,), (40, 30)], ids=str)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_refuses_inputs_with_nan_by_name(
    tmp_path: Path, method: str, shape: tuple[int, ...]
) -> None:
    """Some methods drop elements: what is dropped was looked at all the same."""
    made = [{"w.weight": t} for t in (torch.randn(4, *shape) / 32).bfloat16().unbind()]
    made = [{"w.weight": m["w.weight"].clone()} for m in made]
    made[0]["w.weight"].view(-1)[-3] = math.nan
    paths = write_all(tmp_path, made)
    write_recipe(tmp_path / "recipe.yml", method, paths)

    def merge(**options: Any) -> streammerge.Result:
        return streammerge.merge(tmp_path / "recipe.yml", tmp_path / "out", **options)

    refusal(merge, r"w\.weight in \S+m0 holds NaN or Inf")
    assert by_folder(merge(allow_nonfinite=True).nonfinite_inputs) == {"m0": 1}


def write_recipe(path: Path, name: str, models: list[Path]) -> None:
    """The least that a method needs, with the last model as the base where it takes one."""
    method = METHODS.get(name)
    least, most = method.models
    lines = [f"merge_method: {name}"]
    if method.base != "none":
        lines.append(f"base_model: {models[-1]}")
    required = [p.name for p in method.parameters.values() if p.default is inspect.Parameter.empty]
    lines += ["parameters:", *(f"  {key}: 0.5" for key in required)] if required else []
    lines += ["models:", *(f"  - model: {model}" for model in models[: max(least, most or 3)])]
    path.write_text("\n".join(lines) + "\n")
