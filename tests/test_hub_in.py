"""Models on the Hub merged: the bits are those of the local merge, and few bytes move for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import streammerge
from streammerge.checkpoint import open_checkpoint
from streammerge.storage import DownloadMode
from tests.support.checkpoints import add_side_files, random_tensors, write_checkpoint
from tests.support.cli import in_process
from tests.support.hub import STRANGER, Do, Hub
from tests.support.merging import refusal
from tests.support.remote import IDS, MODES, Pair, manifest_of, weights_of

BOTH = pytest.mark.parametrize("mode", MODES)


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file of an output whose bytes do not name its inputs."""
    named = ("README.md", "streammerge.json")
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in named}


@BOTH
def test_the_merge_is_that_of_the_folders_bit_for_bit(
    tmp_path: Path, pair: Pair, mode: DownloadMode
) -> None:
    result = streammerge.average(IDS, tmp_path / mode, download=mode)
    assert content_of(tmp_path / mode) == content_of(pair.merged)
    assert set(result.read_modes) <= ({"stream"} if mode == "stream" else {"mmap", "direct"})
    verified = streammerge.verify(tmp_path / mode, recompute="all")
    assert verified.ok
    assert verified.recomputed == len(open_checkpoint(pair.folders[0]).tensors)


def test_a_model_from_the_hub_merges_with_one_from_here(tmp_path: Path, pair: Pair) -> None:
    streammerge.average([pair.folders[0], "org/b"], tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted


@BOTH
def test_many_windows_in_little_memory_give_the_same_bits(
    tmp_path: Path, pair: Pair, mode: DownloadMode, hub: Hub
) -> None:
    message = refusal(
        lambda: streammerge.average(IDS, tmp_path / "no", download=mode, memory="1MiB")
    )
    least = message.split("--memory ")[-1].split(".")[0]
    streammerge.average(IDS, tmp_path / mode, download=mode, memory=least)
    assert weights_of(tmp_path / mode) == pair.wanted


@BOTH
def test_planning_moves_kilobytes(tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode) -> None:
    plan = streammerge.plan_average(IDS, tmp_path / "out", download=mode)
    assert hub.log.downloaded(file="*.safetensors") < 4 * 70_000
    assert hub.log.moved() < 4 * 70_000 + 20_000
    assert len(hub.log.find("tree")) == 2
    for repo, model in zip(IDS, plan.inputs, strict=True):
        assert model.pinned == f"{repo}@{hub.head(repo)}"
        assert {file.version for file in model.files} == {hub.head(repo)}
    assert not (tmp_path / "out").exists()


def test_planning_reads_no_more_of_a_large_shard_than_its_header(tmp_path: Path, hub: Hub) -> None:
    tensors = {f"w{i}": torch.zeros(1_000_000) for i in range(4)}
    hub.create("org/large", write_checkpoint(tmp_path / "large", tensors, shards=2))
    streammerge.plan_average(["org/large", "org/large"], tmp_path / "out")
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        assert hub.log.downloaded(file=shard) < 2 * 200_000
        assert hub.log.downloaded(file=shard) < 0.02 * 2 * 8_000_000


def test_a_long_header_is_read_to_its_end(tmp_path: Path, hub: Hub) -> None:
    tensors = {f"{'name' * 30}.{i}": torch.full((3,), float(i)) for i in range(900)}
    folder = write_checkpoint(tmp_path / "a", tensors)
    hub.create("org/a", folder)
    assert open_checkpoint("org/a").tensors == open_checkpoint(folder).tensors
    assert hub.log.read_twice() == 0


def test_a_dry_run_says_what_would_be_downloaded(
    tmp_path: Path, hub: Hub, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    done = in_process(capsys, "average", *IDS, "-o", tmp_path / "out", "--dry-run")
    assert done.code == 0, done.err
    assert "4 to be downloaded" in done.out
    assert "MB into the cache" in done.out
    for repo in IDS:
        assert f"{repo}@{hub.head(repo)}" in done.out
    streamed = in_process(capsys, "plan", *IDS, "-o", tmp_path / "out", "--download", "stream")
    assert "4 stream" in streamed.out
    assert "into the cache" not in streamed.out
    assert hub.log.downloaded(file="*.safetensors") < 8 * 70_000


def test_a_stream_moves_little_more_than_the_weights_and_stores_nothing(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    import huggingface_hub

    streammerge.average(IDS, tmp_path / "out", download="stream")
    assert weights_of(tmp_path / "out") == pair.wanted
    assert hub.log.downloaded(file="*.safetensors") <= 1.05 * pair.weights
    home = Path(huggingface_hub.constants.HF_HOME)
    assert "cannot be checked" in " ".join(manifest_of(tmp_path / "out")["notes"])
    stored = [p for p in home.rglob("*") if p.is_file() and p.stat().st_size > 1000]
    assert stored == []


def test_a_cached_model_is_downloaded_once_and_only_what_is_needed(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    other = {"pytorch_model.bin": b"x" * 5000, "original/model.safetensors": b"x" * 5000}
    hub.commit("org/b", {**other, "onnx/model.onnx": b"x" * 5000, "model.gguf": b"x" * 5000})
    streammerge.average(IDS, tmp_path / "one")
    for path in (*other, "onnx/model.onnx", "model.gguf"):
        assert not hub.log.find(file=path)
    whole = hub.log.find("download", file="*.safetensors", where=lambda e: e.range is None)
    assert len(whole) == 4
    hub.log.clear()
    streammerge.average(IDS, tmp_path / "two")
    assert hub.log.downloaded() == 0
    assert weights_of(tmp_path / "two") == pair.wanted


def test_shards_that_no_tensor_is_taken_from_are_not_downloaded(tmp_path: Path, hub: Hub) -> None:
    tensors = random_tensors(1)
    folder = write_checkpoint(tmp_path / "a", tensors, shards=len(tensors))
    hub.create("org/a", folder)
    kept = sorted(tensors)[0]
    skipped = [name for name in tensors if name != kept]
    streammerge.average(["org/a", folder], tmp_path / "out", skip=skipped)
    whole = hub.log.find("download", file="*.safetensors", where=lambda e: e.range is None)
    assert len(whole) == 1


@BOTH
def test_the_revision_is_pinned_although_the_branch_moves_in_the_middle(
    tmp_path: Path, hub: Hub, pair: Pair, mode: DownloadMode
) -> None:
    before = hub.head("org/b")
    other = write_checkpoint(tmp_path / "other", random_tensors(99, (torch.bfloat16,)))

    def move() -> None:
        hub.commit("org/b", other)

    # After the commit was asked for: at the listing, the index, the weights.
    hub.fault(Do(move), kind="tree", repo="org/b")
    hub.fault(Do(move), kind="resolve", repo="org/b", times=None)
    streammerge.average(IDS, tmp_path / mode, download=mode)
    assert hub.head("org/b") != before
    assert weights_of(tmp_path / mode) == pair.wanted
    revisions = {e.revision for e in hub.log.find("resolve", repo="org/b")}
    assert revisions == {before}
    assert manifest_of(tmp_path / mode)["inputs"][1]["pinned"] == f"org/b@{before}"
    assert f"org/b at `{before}`" in (tmp_path / mode / "README.md").read_text()


def test_verifying_opens_the_inputs_at_the_commit_of_the_merge(
    tmp_path: Path, hub: Hub, pair: Pair
) -> None:
    streammerge.average(IDS, tmp_path / "out", download="stream")
    hub.commit("org/a", write_checkpoint(tmp_path / "new", random_tensors(5)))
    hub.log.clear()
    found = streammerge.verify(tmp_path / "out", recompute=2)
    assert found.ok
    assert found.recomputed == 2
    assert hub.log.downloaded() < pair.weights


def test_branches_tags_and_commits_are_revisions(tmp_path: Path, hub: Hub, pair: Pair) -> None:
    first = hub.head("org/a")
    hub.tag("org/a", "v1")
    hub.commit("org/a", {"model.safetensors.index.json": b"{}"})
    hub.commit("org/a", {"config.json": "{}"}, branch="refs/pr/1")
    for revision in ("v1", first, first[:9]):
        checkpoint = open_checkpoint(f"org/a@{revision}")
        assert checkpoint.pinned == f"org/a@{first}"
        assert checkpoint.label == f"org/a@{revision}"
    refusal(lambda: open_checkpoint("org/a"), "weight_map")
    refusal(lambda: open_checkpoint("org/a@refs/pr/1"), "weight_map")


@BOTH
def test_weights_may_lie_in_a_folder_of_the_repository(
    tmp_path: Path, hub: Hub, mode: DownloadMode
) -> None:
    model = add_side_files(write_checkpoint(tmp_path / "p/unet", random_tensors(1), shards=2))
    write_checkpoint(tmp_path / "p", {"other": torch.zeros(2)})
    hub.create("org/p", tmp_path / "p")
    streammerge.average(["org/p:unet", "org/p@main:unet"], tmp_path / "out", download=mode)
    streammerge.average([model, model], tmp_path / "wanted")
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "wanted")
    assert f"`{hub.head('org/p')}`, `unet`" in (tmp_path / "out/README.md").read_text()
    assert list(open_checkpoint("org/p").tensors) == ["other"]
    assert streammerge.verify(tmp_path / "out", recompute="all").ok


def test_one_of_several_weight_files_can_be_named_as_the_refusal_says(
    tmp_path: Path, hub: Hub
) -> None:
    hub.create(
        "org/many", write_checkpoint(tmp_path / "m", random_tensors(1), file_name="x.safetensors")
    )
    hub.commit(
        "org/many", write_checkpoint(tmp_path / "n", random_tensors(2), file_name="y.safetensors")
    )
    message = refusal(lambda: open_checkpoint("org/many@main"), "2 weight files")
    reference = message.split("e.g. ")[1].rstrip(".\n")
    assert reference == "org/many@main:x.safetensors"
    checkpoint = open_checkpoint(reference)
    assert checkpoint.tensors == open_checkpoint(tmp_path / "m").tensors
    assert checkpoint.pinned == f"org/many@{hub.head('org/many')}:x.safetensors"


def test_the_card_names_the_repositories(tmp_path: Path, hub: Hub, pair: Pair) -> None:
    hub.commit("org/a", {"x.txt": "x"}, branch="v2")
    streammerge.average(["org/a@v2", "org/b", pair.folders[0]], tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "base_model:\n- org/a\n- org/b\n- a\n" in card
    assert "license: mit" in card
    assert f"| org/a at `{hub.head('org/a', 'v2')}` |" in card


def test_the_token_of_the_option_is_used_and_kept_out_of_every_file(
    tmp_path: Path,
    hub: Hub,
    pair: Pair,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.create("stranger/own", pair.folders[1], private=True)
    models = ["org/a", "stranger/own"]
    for mode in MODES:
        out = tmp_path / mode
        arguments = ["average", *models, "-o", out, "--download", mode]
        refused = in_process(capsys, *arguments)
        assert refused.code == 1
        assert "stranger/own" in refused.err
        done = in_process(capsys, *arguments, "--token", STRANGER)
        assert done.code == 0, done.err
        assert weights_of(out) == pair.wanted
        for path in out.iterdir():
            assert STRANGER.encode() not in path.read_bytes(), path.name
    inspected = in_process(capsys, "inspect", "stranger/own", "--token", STRANGER)
    assert inspected.code == 0, inspected.err
