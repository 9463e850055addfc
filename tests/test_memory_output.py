"""Memory as an output: it takes what every output takes, and has what a folder would have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import streammerge
from streammerge.budget import Layout
from streammerge.checkpoint import Checkpoint
from streammerge.errors import OutputError
from streammerge.execute import Pipeline
from streammerge.inmemory.tensorbytes import TensorBytes
from streammerge.outputs import Output
from streammerge.outputs.memory import MemoryOutput
from streammerge.plan import Plan
from tests.support.checkpoints import Tensors, like, random_tensors, read_checkpoint
from tests.support.merging import assert_same_bits, write_all
from tests.support.preparing import prepare_average

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def empty_like(tensors: Tensors) -> Tensors:
    """Tensors of the same kind that hold something else."""
    return {
        name: torch.zeros_like(tensor) - 1
        if tensor.dtype.is_floating_point
        else torch.zeros_like(tensor)
        for name, tensor in tensors.items()
    }


def memory_output(tensors: Tensors) -> MemoryOutput:
    return MemoryOutput({name: TensorBytes(tensor) for name, tensor in tensors.items()})


def planned(folder: Path, **options: int) -> tuple[Tensors, Plan, list[Checkpoint], Layout]:
    first = random_tensors(1, DTYPES)
    paths = [str(path) for path in write_all(folder, [first, like(first, 2)])]
    prepared = prepare_average(paths, folder / "out", **options)
    return first, prepared.plan, prepared.checkpoints, prepared.layout


@pytest.mark.parametrize("seed", range(4))
def test_windows_in_any_order_and_of_any_size_fill_the_tensors(tmp_path: Path, seed: int) -> None:
    tensors, plan, _, _ = planned(tmp_path)
    data, draw = save(tensors, metadata={"format": "pt"}), random.Random(seed)
    assert plan.shards[0].file_size == len(data)
    filled = empty_like(tensors)
    output = memory_output(filled)
    assert output.begin(plan) == []
    shard = output.create(plan.shards[0].file, len(data))
    cuts = sorted(draw.sample(range(0, len(data), 8), 30))
    spans = list(zip([0, *cuts], [*cuts, len(data)], strict=True))
    draw.shuffle(spans)
    for start, end in spans:
        padded = memoryview(bytearray(data[start:end] + b"\xff" * 16))
        shard.write(start, padded, end - start)
    shard.finish()
    shard.close()
    output.publish({}, plan.shards[0].file)
    assert_same_bits(filled, tensors)


@pytest.mark.parametrize("shard_size", [5_000_000_000, 300_000], ids=["one", "several shards"])
def test_memory_gets_what_a_folder_gets(tmp_path: Path, shard_size: int) -> None:
    tensors, plan, checkpoints, layout = planned(tmp_path, max_shard_size=shard_size)
    assert (len(plan.shards) > 1) is (shard_size < 10**6)
    filled = empty_like(tensors)
    output: Output = memory_output(filled)
    output.begin(plan)
    report = Pipeline(plan, checkpoints, layout, output).run()
    assert [shard.bytes for shard in report.shards] == [s.file_size for s in plan.shards]
    streammerge.average([str(tmp_path / "m0"), str(tmp_path / "m1")], tmp_path / "disk")
    assert_same_bits(filled, read_checkpoint(tmp_path / "disk"))


def test_what_is_not_written_is_not_digested(tmp_path: Path) -> None:
    tensors, plan, checkpoints, layout = planned(tmp_path)
    output = memory_output(empty_like(tensors))
    output.begin(plan)
    report = Pipeline(plan, checkpoints, layout, output).run()
    assert [shard.sha256 for shard in report.shards] == [""]


def test_nothing_is_kept_for_another_run(tmp_path: Path) -> None:
    tensors, plan, _, _ = planned(tmp_path)
    output = memory_output(empty_like(tensors))
    output.begin(plan)
    assert output.abandon() is False
    assert output.begin(plan) == []


@pytest.mark.parametrize("change", ["missing", "extra", "of another size"])
def test_tensors_that_do_not_fit_the_plan_are_refused(tmp_path: Path, change: str) -> None:
    tensors, plan, _, _ = planned(tmp_path)
    name = "block.7.float32"
    wrong = {
        "missing": {n: t for n, t in tensors.items() if n != name},
        "extra": tensors | {"x": torch.ones(1)},
        "of another size": tensors | {name: torch.ones(3)},
    }
    with pytest.raises(OutputError, match="x" if change == "extra" else name):
        memory_output(wrong[change]).begin(plan)
