"""What lies beside the merged weights: config, side files, model card, and the account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import streammerge
from tests.support.checkpoints import (
    TEXT_SIDE_FILES,
    Config,
    add_side_files,
    like,
    random_tensors,
    read_checkpoint,
    write_checkpoint,
    write_json,
)
from tests.support.outputs import read_json

NEVER_COPIED = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "training_args.bin",
    "trainer_state.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "old.safetensors",
    "consolidated.safetensors",
    "model.gguf",
    "model.onnx",
    "original/consolidated.00.pth",
    "original/params.json",
    ".cache/huggingface/x.metadata",
    ".git/config",
    ".gitattributes",
    "runs/events.out.tfevents",
    "evil.py",
)


def pair(root: Path, config: Config | None = None, other: Config | None = None) -> list[Path]:
    """Two checkpoints with side files; the second has config `other`, or the same."""
    first = random_tensors(1)
    a = add_side_files(write_checkpoint(root / "a", first), config)
    b = add_side_files(write_checkpoint(root / "b", like(first, 2)), other or config)
    return [a, b]


def average(paths: list[Path], out: Path, **options: Any) -> streammerge.Result:
    return streammerge.average([str(p) for p in paths], str(out), **options)


CONFIGS: dict[str, tuple[Config, Config]] = {
    "dtype": ({"dtype": "bfloat16"}, {"dtype": "float32"}),
    "torch_dtype": ({"torch_dtype": "bfloat16"}, {"torch_dtype": "float32"}),
    "both": (
        {"torch_dtype": "bfloat16", "dtype": "bfloat16"},
        {"torch_dtype": "float32", "dtype": "float32"},
    ),
    "nested": (
        {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "n": 1}, "vision_config": {}},
        {"dtype": "float32", "text_config": {"dtype": "float32", "n": 1}, "vision_config": {}},
    ),
    "nested only": (
        {"text_config": {"torch_dtype": "bfloat16"}},
        {"text_config": {"torch_dtype": "float32"}},
    ),
}


@pytest.mark.parametrize(("before", "after"), CONFIGS.values(), ids=CONFIGS)
def test_the_configs_dtype_follows_the_weights(
    tmp_path: Path, before: Config, after: Config
) -> None:
    rest = {"model_type": "toy", "hidden_size": 8}
    average(pair(tmp_path, rest | before), tmp_path / "out", dtype="float32")
    assert read_json(tmp_path / "out" / "config.json") == rest | after
    assert {t.dtype for t in read_checkpoint(tmp_path / "out").values()} == {torch.float32}


@pytest.mark.parametrize("before", [c[0] for c in CONFIGS.values()], ids=CONFIGS)
def test_the_config_is_unchanged_where_the_dtype_is(tmp_path: Path, before: Config) -> None:
    paths = pair(tmp_path, {"model_type": "toy", "x": 1e-06, "é": "ü"} | before)
    average(paths, tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == (
        paths[0] / "config.json"
    ).read_bytes()


def test_side_files_are_copied_whole_from_the_first_model(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    for name in TEXT_SIDE_FILES:
        (paths[1] / name).write_text("other")
    average(paths, tmp_path / "out")
    for name, text in TEXT_SIDE_FILES.items():
        assert (tmp_path / "out" / name).read_text() == text


def test_side_files_come_from_the_model_that_is_named(tmp_path: Path) -> None:
    paths = pair(tmp_path, {"model_type": "toy", "dtype": "bfloat16"}, {"model_type": "b"})
    (paths[1] / "tokenizer.json").write_text("other")
    average(paths, tmp_path / "out", side_files_from=str(paths[1]))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "other"
    assert read_json(tmp_path / "out" / "config.json")["model_type"] == "b"


def test_the_dtype_of_a_config_taken_from_another_model_fits_the_weights(tmp_path: Path) -> None:
    half = random_tensors(1)
    full = {name: t.float() for name, t in like(half, 2).items()}
    a = write_checkpoint(tmp_path / "a", half, config={"dtype": "bfloat16"})
    b = write_checkpoint(tmp_path / "b", full, config={"dtype": "float32"})
    average([a, b], tmp_path / "out", side_files_from=str(b))
    assert read_json(tmp_path / "out" / "config.json") == {"dtype": "bfloat16"}


@pytest.mark.parametrize("name", NEVER_COPIED)
def test_weights_states_and_caches_are_never_copied(tmp_path: Path, name: str) -> None:
    paths = pair(tmp_path)
    write_checkpoint(paths[0], random_tensors(1), shards=2)
    (paths[0] / "model.safetensors").unlink()
    (paths[0] / name).parent.mkdir(parents=True, exist_ok=True)
    (paths[0] / name).write_text("{}")
    average(paths, tmp_path / "out")
    assert not (tmp_path / "out" / name).exists()
    top = {p.name for p in (tmp_path / "out").iterdir()}
    assert top == {*TEXT_SIDE_FILES, "config.json", "README.md", "streammerge.json"} | {
        "model.safetensors"
    }


def test_code_that_the_config_names_is_copied(tmp_path: Path) -> None:
    names = {"AutoModel": "modeling_toy.Toy", "AutoTokenizer": ["tok_toy.T", None]}
    paths = pair(tmp_path, {"model_type": "toy", "auto_map": names})
    for file in ("modeling_toy.py", "tok_toy.py", "other.py"):
        (paths[0] / file).write_text("# code\n")
    average(paths, tmp_path / "out")
    copied = {p.name for p in (tmp_path / "out").glob("*.py")}
    assert copied == {"modeling_toy.py", "tok_toy.py"}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"vocab_size": 32001}, "vocab_size"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
        ({"text_config": {"rope_theta": 5e5}}, "rope_theta"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps"),
    ],
)
def test_config_differences_that_matter_are_said(
    tmp_path: Path, change: Config, pattern: str
) -> None:
    base: Config = {"model_type": "toy", "vocab_size": 32000, "rms_norm_eps": 1e-5}
    base |= {"text_config": {"rope_theta": 1e4}}
    result = average(pair(tmp_path, base, base | change), tmp_path / "out")
    assert any(pattern in note for note in result.notes), result.notes


def test_config_differences_that_do_not_matter_are_not_said(tmp_path: Path) -> None:
    base: Config = {"model_type": "toy", "transformers_version": "4.1", "_name_or_path": "x"}
    other = base | {"transformers_version": "5.2", "_name_or_path": "y", "use_cache": False}
    result = average(pair(tmp_path, base, other), tmp_path / "out")
    assert not [n for n in result.notes if "config" in n], result.notes


def test_tokenizers_that_differ_are_said(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    (paths[1] / "tokenizer.json").write_text("other")
    result = average(paths, tmp_path / "out")
    assert any("tokenizer.json" in note for note in result.notes), result.notes


def test_a_single_file_without_side_files_gives_weights_card_and_account(tmp_path: Path) -> None:
    tensors = random_tensors(1)
    paths = [write_checkpoint(tmp_path / n, tensors) / "model.safetensors" for n in "ab"]
    average(paths, tmp_path / "out")
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"model.safetensors", "README.md", "streammerge.json"}


def test_nothing_but_the_output_is_left_beside_it(tmp_path: Path) -> None:
    paths = pair(tmp_path)
    write_json(paths[0] / "config.json", {"model_type": "toy"})
    before = {p.name for p in tmp_path.iterdir()}
    average(paths, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == before | {"out"}
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]
