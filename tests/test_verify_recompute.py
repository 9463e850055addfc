"""`verify --recompute` and `--load`: what only the inputs, or a loader, can tell."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import streammerge
from streammerge.errors import RecipeError
from tests.support.checkpoints import (
    Tensors,
    add_side_files,
    like,
    random_tensors,
    tiny_llama,
    write_checkpoint,
    write_json,
)
from tests.support.cli import in_process
from tests.support.merging import snapshot
from tests.support.verifying import (
    MANIFEST,
    cut,
    edit,
    findings,
    forge_tensors,
    merged,
    merged_in_shards,
    reseal,
    reweigh,
    shard_name,
    small,
)

Capture = pytest.CaptureFixture[str]
NAME = "block.3.bfloat16"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return merged(tmp_path)


def test_a_merge_of_several_windows_is_computed_again(tmp_path: Path) -> None:
    tensors = random_tensors(1, shapes=((700, 1001), (300_000,), (100, 100), (3,)))
    out = merged(tmp_path, tensors, dtype="float32", max_shard_size="2MB")
    steps: list[tuple[str, int, int]] = []
    done = streammerge.verify(out, recompute="all", progress=lambda *step: steps.append(step))
    assert (done.findings, done.recomputed) == ([], 4)
    for stage in ("checking", "merging again"):
        counted = [(nbytes, total) for name, nbytes, total in steps if name == stage]
        assert sum(nbytes for nbytes, _ in counted) == counted[0][1] > 0


def test_skipped_kept_and_cast_tensors_are_computed_again(tmp_path: Path) -> None:
    options = {"skip": ["block.2.*"], "keep": ["block.4.*"], "dtype": "float16"}
    assert findings(merged(tmp_path, **options), recompute="all") == {}


def test_nonfinite_values_that_were_allowed_are_computed_again(tmp_path: Path) -> None:
    tensors = {"w": torch.tensor([1.0, float("nan"), float("inf")])}
    assert findings(merged(tmp_path, tensors, allow_nonfinite=True), recompute="all") == {}


def test_the_choice_of_tensors_is_the_same_every_time_and_not_the_largest(tmp_path: Path) -> None:
    tensors = random_tensors(1, shapes=[(size,) for size in range(1, 200)])
    out = merged(tmp_path, tensors)
    wrong = []
    forge_tensors(out, lambda ts: [t.zero_() for t in ts.values()])
    for _ in range(2):
        found = findings(out, recompute=20)
        wrong.append(sorted(found.keys() & tensors.keys()))
    assert wrong[0] == wrong[1]
    assert len(wrong[0]) == 20
    sizes = [tensors[name].numel() for name in wrong[0]]
    assert min(sizes) < 60 < 140 < max(sizes)


def one_bit(tensors: Tensors) -> None:
    tensors[NAME].view(torch.int16)[5, 7] ^= 1


FORGERIES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "one bit": (lambda o: forge_tensors(o, one_bit), NAME, "1 of 297 elements"),
    "a tensor less": (lambda o: forge_tensors(o, lambda t: t.pop(NAME)), "coverage", "missing"),
    "a tensor more": (
        lambda o: forge_tensors(o, lambda t: t.update(x=torch.ones(1))),
        "coverage",
        "x: F32 .*not as planned",
    ),
    "another dtype": (
        lambda o: forge_tensors(o, lambda t: t.update({NAME: t[NAME].float()})),
        "coverage",
        "F32 .*not as planned",
    ),
    "other weights": (
        lambda o: reweigh(o, [1.0, 1.0]),
        MANIFEST,
        "belong together",
    ),
    "another fingerprint": (
        lambda o: reseal(o, lambda m: m.update(fingerprint="0" * 64)),
        MANIFEST,
        "belong together",
    ),
    "another arithmetic": (
        lambda o: reseal(o, lambda m: m.update(arithmetic=99)),
        MANIFEST,
        "rounds otherwise",
    ),
    "weights that sum to zero": (
        lambda o: reweigh(o, [1.0, -1.0]),
        "recompute",
        "sum to zero",
    ),
}


@pytest.mark.parametrize(("forge", "where", "what"), FORGERIES.values(), ids=FORGERIES)
def test_a_forgery_that_digests_cannot_tell_is_found(
    out: Path, forge: Callable[[Path], object], where: str, what: str
) -> None:
    forge(out)
    assert findings(out) == {}
    found = findings(out, recompute="all")
    assert re.search(what, found.get(where, "")), found


def test_other_weights_give_other_bits(out: Path) -> None:
    reweigh(out, [1.0, 2.0])
    assert "elements are not" in findings(out, recompute="all")[NAME]


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "no checkpoint"),
    "weights gone": (lambda a: (a / "model.safetensors").unlink(), "no safetensors weights"),
    "truncated": (lambda a: cut(a / "model.safetensors"), "truncated"),
    "other tensors": (lambda a: write_checkpoint(a, random_tensors(5)), "bytes instead of"),
    "another header": (
        lambda a: (a / "model.safetensors").write_bytes(
            (a / "model.safetensors").read_bytes().replace(b"block.0.", b"blokk.0.")
        ),
        "another header",
    ),
    "another file name": (
        lambda a: (a / "model.safetensors").rename(a / "other.safetensors"),
        "not there any more",
    ),
}


@pytest.mark.parametrize(("change", "what"), CHANGES.values(), ids=CHANGES)
def test_an_input_that_changed_is_named(
    tmp_path: Path, out: Path, change: Callable[[Path], object], what: str
) -> None:
    change(tmp_path / "b")
    assert findings(out) == {}
    done = streammerge.verify(out, recompute="all")
    assert done.recomputed == 0
    assert {finding.where for finding in done.findings} == {str(tmp_path / "b")}
    assert what in "".join(finding.what for finding in done.findings)


def test_a_copied_input_is_said_and_computed_with(tmp_path: Path, out: Path) -> None:
    file = tmp_path / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes())
    done = streammerge.verify(out, recompute="all")
    assert done.recomputed == len(small())
    assert [(f.where, f.what) for f in done.findings] == [
        (str(tmp_path / "b"), f"{file.name} was modified or copied since it was merged")
    ]


def test_an_input_with_another_bit_is_found_in_the_tensor(tmp_path: Path, out: Path) -> None:
    model = like(small(), 2)
    one_bit(model)
    model[NAME][0, 0] = 7.0
    write_checkpoint(tmp_path / "b", model)
    assert "elements are not" in findings(out, recompute="all")[NAME]


def test_a_broken_shard_does_not_hide_the_others(tmp_path: Path) -> None:
    out = merged_in_shards(tmp_path)
    cut(out / shard_name(1))
    done = streammerge.verify(out, recompute="all")
    assert {finding.where for finding in done.findings} == {shard_name(1)}
    assert 0 < done.recomputed < len(small())


@pytest.mark.parametrize("count", [0, -1, 1.5, "some", ""])
def test_a_count_that_makes_no_sense_is_refused(out: Path, count: Any) -> None:
    with pytest.raises(RecipeError, match="recompute"):
        streammerge.verify(out, recompute=count)


def test_a_relative_path_that_leads_nowhere_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        add_side_files(write_checkpoint(tmp_path / name, small()))
    monkeypatch.chdir(tmp_path)
    streammerge.average(["a", "b"], "out")
    assert findings(Path("out"), recompute="all") == {}
    monkeypatch.chdir(tmp_path / "a")
    assert "where the merge ran" in findings(tmp_path / "out", recompute="all")["a"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    paths = [tiny_llama(tmp_path / f"m{seed}", seed, tied=False) for seed in (1, 2)]
    streammerge.average(paths, tmp_path / "out", max_shard_size="5KB")
    return tmp_path / "out"


def test_transformers_takes_a_good_output(capsys: Capture, tmp_path: Path, llama: Path) -> None:
    before = snapshot(tmp_path)
    done = streammerge.verify(llama, recompute="all", load=True)
    assert (done.findings, done.loaded) == ([], "LlamaForCausalLM")
    shown = in_process(capsys, "verify", llama, "--load")
    assert (shown.code, shown.err) == (0, "")
    assert "LlamaForCausalLM" in shown.out
    assert snapshot(tmp_path) == before


def test_a_model_that_lacks_what_its_config_says_is_found(llama: Path) -> None:
    edit(llama / "config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')
    assert "wants tensors that the output lacks (9)" in findings(llama, load=True)["load"]
    edit(llama / "config.json", '"num_hidden_layers": 3', '"num_hidden_layers": 1')
    assert "no use for tensors" in findings(llama, load=True)["load"]
    edit(llama / "config.json", '"intermediate_size": 32', '"intermediate_size": 33')
    assert "load" in findings(llama, load=True)


@pytest.mark.parametrize(
    ("config", "where", "what"),
    [
        ({"architectures": ["ToyModel"]}, "load", "ToyModel is no class of transformers"),
        ({"architectures": ["Toy"], "auto_map": {"AutoModel": "t.Toy"}}, "load", "never run"),
        ({"architectures": "LlamaModel"}, "config.json", "names no architecture"),
        ({}, "config.json", "names no architecture"),
    ],
)
def test_an_architecture_that_transformers_lacks_is_a_finding(
    out: Path, config: dict[str, Any], where: str, what: str
) -> None:
    write_json(out / "config.json", config)
    assert what in findings(out, load=True)[where]


def test_without_transformers_that_is_the_finding(out: Path) -> None:
    with mock.patch.dict(sys.modules, {"transformers": None}):
        assert "not installed" in findings(out, load=True)["load"]
