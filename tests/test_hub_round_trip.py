"""From the Hub to the Hub: what comes back is the local merge, and little touches the disk."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download

import streammerge
from streammerge.outputs.shardfile import DirectoryShard
from streammerge.storage import DownloadMode
from tests.support.checkpoints import read_checkpoint, tiny_llama, write_checkpoint
from tests.support.hub import Hub
from tests.support.targets import REPO

NAMES = ["me/model-a", "me/model-b"]
SHARDS = {"max_shard_size": "4kB"}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, and last their merge."""
    root = tmp_path_factory.mktemp("llamas")
    models = [tiny_llama(root / name, seed, tied=False) for seed, name in enumerate("ab")]
    streammerge.average(models, root / "merged", weights=[0.7, 0.3], **SHARDS)
    return [*models, root / "merged"]


@pytest.mark.parametrize("way", ["hub", "folder"])
@pytest.mark.parametrize("download", ["cache", "stream"])
def test_pushed_merged_pulled_and_loaded(
    hub: Hub, llamas: list[Path], tmp_path: Path, download: DownloadMode, way: str
) -> None:
    for name, folder in zip(NAMES, llamas, strict=False):
        HfApi().create_repo(name, private=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    out = f"hf://{REPO}" if way == "hub" else str(tmp_path / "out")
    done = streammerge.average(
        NAMES,
        out,
        weights=[0.7, 0.3],
        download=download,
        push_to_hub=None if way == "hub" else REPO,
        private=True,
        **SHARDS,
    )
    assert done.pushed is not None
    pulled = Path(snapshot_download(REPO, revision=done.pushed.commit))
    weights = {path.name: path.read_bytes() for path in llamas[-1].glob("*.safetensors*")}
    assert len(weights) > 3
    assert {path.name: path.read_bytes() for path in pulled.glob("*.safetensors*")} == weights
    assert streammerge.verify(pulled).ok
    assert_loads(pulled, read_checkpoint(llamas[-1]))


def assert_loads(folder: Path, wanted: dict[str, torch.Tensor]) -> None:
    """transformers finds every tensor, and each with the bits that it should have."""
    from transformers import LlamaForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = LlamaForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True
        )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_streamed_in_and_out_it_takes_the_disk_of_two_shards(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"t{i}.weight": torch.randn(128, 4096, generator=generator) for i in range(6)}
        hub.create(name, write_checkpoint(tmp_path / str(seed), tensors, shards=3))
    home, most = Path(os.environ["HF_HOME"]), 0
    original = DirectoryShard.write

    def write(self: DirectoryShard, *args: int) -> None:
        nonlocal most
        original(self, *args)
        most = max(most, size_below(home))

    monkeypatch.setattr(DirectoryShard, "write", write)
    before = size_below(home)
    done = streammerge.average(NAMES, f"hf://{REPO}", max_shard_size="2.1MB", download="stream")
    assert len(done.shards) == 6
    largest = max(shard.bytes for shard in done.shards)
    assert 0 < most - before <= 2 * largest + 100_000, f"{(most - before) / largest:.2f} shards"
    assert size_below(home) - before < 100_000, "something was left"
    weights = 2 * sum(shard.bytes for shard in done.shards)
    assert hub.log.downloaded(file="*.safetensors") <= 1.05 * weights


def size_below(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk, but for links."""
    sizes = []
    for path in folder.rglob("*"):
        try:
            sizes.append(path.lstat().st_blocks * 512 if path.is_file() else 0)
        except FileNotFoundError:  # sent and removed just now
            continue
    return sum(sizes)
