"""The command line: exit codes, what goes to stdout and what to stderr, and JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from streammerge import native
from tests.support.checkpoints import add_side_files, like, random_tensors, write_checkpoint
from tests.support.cli import ANSI, Done, command, in_process, run
from tests.support.merging import assert_untouched, sizes_in, snapshot, without_test_folders
from tests.support.outputs import manifest, shards_of

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    first = random_tensors(1)
    models = {"left": first, "right": like(first, seed=2)}
    return [add_side_files(write_checkpoint(tmp_path / n, m)) for n, m in models.items()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def succeeded(done: Done) -> Done:
    assert done.code == 0, done.err
    assert "Traceback" not in done.err + done.out
    return done


def failed(done: Done, code: int, *patterns: str) -> Done:
    assert done.code == code, f"exit {done.code}: {done.err or done.out}"
    assert "Traceback" not in done.err + done.out
    assert 0 < len(done.err.splitlines()) <= 30
    for pattern in patterns:
        assert pattern.lower() in without_test_folders(done.err).lower(), done.err
    return done


def test_average_writes_and_says_where(capsys: Capture, pair: list[Path], out: Path) -> None:
    done = succeeded(in_process(capsys, "average", *pair, "-o", out))
    assert str(out) in done.out.replace("\n", "")
    assert (out / "model.safetensors").exists()


def test_output_and_weight_have_long_and_short_names(
    capsys: Capture, pair: list[Path], tmp_path: Path
) -> None:
    short = ("-w", "0.7", "-w", "0.3", "-o", tmp_path / "a")
    long = ("--weight", "0.7", "--weight", "0.3", "--output", tmp_path / "b")
    for options in (short, long):
        succeeded(in_process(capsys, "average", *pair, *options))
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert a == b


@pytest.mark.parametrize("extra", [[], ["--dry-run"], ["--quiet"], ["--verbose"]], ids=str)
def test_json_is_one_object_on_stdout(
    capsys: Capture, pair: list[Path], out: Path, extra: list[str]
) -> None:
    done = succeeded(in_process(capsys, "average", *pair, "-o", out, "--json", *extra))
    found: dict[str, Any] = json.loads(done.out)
    assert isinstance(found, dict)
    text = json.dumps(found)
    assert str(out) in text
    if extra == ["--dry-run"]:
        assert all(str(p) in text for p in pair)
    else:
        assert all(shard["sha256"] in text for shard in manifest(out)["shards"])


def test_json_of_inspect_counts_what_is_there(capsys: Capture, pair: list[Path]) -> None:
    found = json.loads(succeeded(in_process(capsys, "inspect", pair[0], "--json")).out)
    tensors = random_tensors(1)
    assert found["parameters"] == sum(t.numel() for t in tensors.values())
    assert found["bytes"] == sum(t.nbytes for t in tensors.values())
    count = found["tensors"]
    assert (count if isinstance(count, int) else len(count)) == len(tensors)


def test_inspect_names_dtypes_and_shards(capsys: Capture, tmp_path: Path) -> None:
    tensors = random_tensors(1, (torch.bfloat16, torch.float32, torch.int64))
    folder = write_checkpoint(tmp_path / "m", tensors, shards=3)
    done = succeeded(in_process(capsys, "inspect", folder))
    for word in ("BF16|bfloat16", "F32|float32", "I64|int64"):
        assert any(w in done.out for w in word.split("|")), done.out
    assert f"{len(tensors)}" in done.out


def test_quiet_says_nothing_on_stderr(capsys: Capture, pair: list[Path], out: Path) -> None:
    assert succeeded(in_process(capsys, "average", *pair, "-o", out, "-q")).err == ""


def test_progress_and_notes_do_not_reach_stdout(
    capsys: Capture, pair: list[Path], out: Path
) -> None:
    done = succeeded(in_process(capsys, "average", *pair, "-o", out))
    assert "GB/s" not in done.out.splitlines()[0]
    assert "\r" not in done.out
    assert not ANSI.search(done.out)


def test_dry_run_writes_nothing_and_says_everything(
    capsys: Capture, pair: list[Path], out: Path
) -> None:
    before = snapshot(*pair)
    options = ("-w", "0.7", "-w", "0.3", "--max-shard-size", "100KB")
    text = succeeded(in_process(capsys, "average", *pair, "-o", out, "--dry-run", *options)).out
    assert not out.exists()
    assert snapshot(*pair) == before
    for word in ("left", "right", "0.7", "0.3", "memory"):
        assert word in text.lower(), text
    succeeded(in_process(capsys, "average", *pair, "-o", out, *options))
    assert f"{len(shards_of(out))}" in text
    written = sum(p.stat().st_size for p in shards_of(out))
    assert any(abs(size - written) < written / 50 for size in sizes_in(text)), text
    read = sum((p / "model.safetensors").stat().st_size for p in pair)
    assert any(abs(size - read) < read / 50 for size in sizes_in(text)), text


@pytest.mark.parametrize("extra", [[], ["--json"], ["-w", "5", "-w", "3"]], ids=str)
def test_plan_is_average_dry_run(
    capsys: Capture, pair: list[Path], out: Path, extra: list[str]
) -> None:
    plan = succeeded(in_process(capsys, "plan", *pair, "-o", out, *extra))
    dry = succeeded(in_process(capsys, "average", *pair, "-o", out, "--dry-run", *extra))
    assert plan.out == dry.out
    assert not out.exists()


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "no such model": (["average", "{a}", "{a}/gone", "-o", "{out}"], ["gone"]),
    "one model": (["average", "{a}", "-o", "{out}"], ["two"]),
    "wrong weights": (["average", "{a}", "{b}", "-w", "1", "-o", "{out}"], ["weight"]),
    "zero weights": (["average", "{a}", "{b}", "-w", "1", "-w", "-1", "-o", "{out}"], ["zero"]),
    "little memory": (["average", "{a}", "{b}", "--memory", "1MiB", "-o", "{out}"], ["mib"]),
    "out is an input": (["average", "{a}", "{b}", "-o", "{a}"], ["input"]),
    "inspect nothing": (["inspect", "{a}/gone"], ["gone"]),
    "plan nothing": (["plan", "{a}", "{a}/gone", "-o", "{out}"], ["gone"]),
}


@pytest.mark.parametrize("json_too", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("args", "patterns"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_exits_1_with_a_short_message(
    capsys: Capture,
    pair: list[Path],
    out: Path,
    args: list[str],
    patterns: list[str],
    json_too: bool,
) -> None:
    filled = [arg.format(a=pair[0], b=pair[1], out=out) for arg in args]
    done = failed(in_process(capsys, *filled, *["--json"] * json_too), 1, *patterns)
    assert done.out == "" or (json_too and isinstance(json.loads(done.out), dict))
    assert_untouched(out)


@pytest.mark.parametrize(
    "args",
    [
        ["average"],
        ["average", "{a}", "{b}"],
        ["average", "{a}", "{b}", "-o"],
        ["average", "{a}", "{b}", "-o", "{out}", "--no-such-option"],
        ["average", "{a}", "{b}", "-o", "{out}", "-w", "heavy", "-w", "1"],
        ["average", "{a}", "{b}", "-o", "{out}", "--dtype", "int3"],
        ["average", "{a}", "{b}", "-o", "{out}", "--io", "telepathy"],
        ["no-such-command"],
        ["inspect"],
        ["inspect", "{a}", "{b}"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(capsys: Capture, pair: list[Path], out: Path, args: list[str]) -> None:
    filled = [arg.format(a=pair[0], b=pair[1], out=out) for arg in args]
    done = failed(in_process(capsys, *filled), 2)
    assert done.out == ""
    assert_untouched(out)


HEAVY = {"torch", "numpy", "huggingface_hub", "transformers", "accelerate", "tqdm", "yaml"}


def loaded_by(*args: str) -> set[str]:
    """The modules that a command loads; what it says is there."""
    begun = [sys.executable, "-X", "importtime", *command(*args)[1:]]
    done = subprocess.run(begun, capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("args", ["--help", "--version", "average --help", "push --help"])
def test_help_loads_the_command_line_and_nothing_else(args: str) -> None:
    loaded = loaded_by(*args.split())
    assert not loaded & HEAVY
    own = {name for name in loaded if name.startswith("streammerge.")}
    light = {"streammerge.errors", "streammerge.tensors", "streammerge.version"}
    assert {name for name in own if not name.startswith("streammerge.cli")} <= light
    assert "streammerge.cli.app" in own


def test_methods_are_listed_without_the_rest_of_the_program() -> None:
    loaded = loaded_by("methods")
    assert loaded & HEAVY == {"numpy"}
    assert "streammerge.methods" in loaded
    assert not loaded & {"streammerge.api", "streammerge.recipe", "streammerge.checkpoint"}


def test_a_merge_of_folders_does_not_load_the_client_of_the_hub(
    pair: list[Path], tmp_path: Path
) -> None:
    loaded = loaded_by("average", *map(str, pair), "-o", str(tmp_path / "out"), "--json")
    client = {"huggingface_hub.hf_api", "huggingface_hub.utils", "httpx2", "httpx", "requests"}
    assert not loaded & client


@pytest.mark.skipif(not native.is_there(), reason="no C compiler was there at installation")
def test_torch_is_loaded_by_the_merges_that_need_it(pair: list[Path], tmp_path: Path) -> None:
    base, tuned = map(str, pair)
    recipes = {
        "slerp": {"base_model": base, "parameters": {"t": 0.3}},
        "ties": {"base_model": base, "parameters": {"density": 0.5}},
        "dare_ties": {"base_model": base, "parameters": {"density": 0.5}},
        "task_arithmetic": {"base_model": base},
        "magmax": {"base_model": base},
    }
    with_torch = set()
    for method, settings in recipes.items():
        recipe = tmp_path / f"{method}.yml"
        content = {"merge_method": method, "models": [{"model": tuned}], **settings}
        recipe.write_text(json.dumps(content))
        if "torch._utils" in loaded_by("merge", str(recipe), "-o", str(tmp_path / method)):
            with_torch.add(method)
    assert with_torch == {"magmax"}
    assert "torch._utils" not in loaded_by("average", base, tuned, "-o", str(tmp_path / "average"))


def test_help_answers_in_less_than_a_second() -> None:
    seconds = []
    for _ in range(3):  # in time on the processor: others may be at work on this machine
        before = os.times()
        assert "average" in succeeded(run("--help")).out
        after = os.times()
        spent = after.children_user + after.children_system
        seconds.append(spent - before.children_user - before.children_system)
    assert min(seconds) < 1.0, seconds


@pytest.mark.parametrize("name", ["average", "plan", "inspect"])
def test_every_command_has_help_with_its_options(capsys: Capture, name: str) -> None:
    text = succeeded(in_process(capsys, name, "--help")).out
    shared = ("--weight", "--dtype", "--memory", "--max-shard-size", "--device", "--skip", "--keep")
    for option in ("--json", *(shared if name != "inspect" else ())):
        assert option in text


def test_the_whole_way_in_a_process_of_its_own(pair: list[Path], out: Path) -> None:
    done = succeeded(run("average", *pair, "-o", out, "--json"))
    assert json.loads(done.out)
    failed(run("average", *pair, "-o", out), 1, "empty", "--overwrite")
    assert (out / "model.safetensors").exists()
