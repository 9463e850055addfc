"""What the Hub says no to: each with its own short message, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

import streammerge
from streammerge.checkpoint import open_checkpoint
from streammerge.errors import HubError, RecipeError, StreammergeError, UnsupportedError
from streammerge.storage import DownloadMode, retrying
from streammerge.storage.hub_listing import open_listing
from tests.support.checkpoints import random_tensors, write_checkpoint
from tests.support.cli import in_process
from tests.support.hub import STRANGER, Hub
from tests.support.merging import assert_untouched, refusal
from tests.support.remote import IDS, MODES, Pair

BOTH = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]) -> None:
    monkeypatch.setattr(retrying, "pause", lambda seconds, stop: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", random_tensors(1))


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    message = refusal(lambda: open_checkpoint("org/nothing"), "org/nothing", "no such repository")
    assert "Check the name" in message
    with pytest.raises(HubError) as caught:
        open_checkpoint("org/nothing")
    assert "no such path here" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize("token", [None, STRANGER])
def test_a_private_repository_of_others_is_like_a_missing_one_and_the_remedy_fits_both(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    hub.create("org/secret", model, private=True)
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    message = refusal(lambda: open_checkpoint("org/secret"), "private", "HF_TOKEN", "--token")
    assert len(message.splitlines()) <= 3


def test_a_private_repository_opens_with_a_token_that_may_see_it(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("me/secret", model, private=True)
    assert open_checkpoint("me/secret").tensors
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    refusal(lambda: open_checkpoint("me/secret"), "private")


def test_a_token_that_is_not_valid(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("org/a", model)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = refusal(lambda: open_checkpoint("org/a"), "token is not valid", "hf auth login")
    assert "hf_wrong" not in message


@BOTH
@pytest.mark.parametrize("token", [None, STRANGER])
def test_a_gated_repository_says_where_to_ask(
    tmp_path: Path,
    hub: Hub,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: DownloadMode,
    token: str | None,
) -> None:
    hub.create("org/gated", model, gated="manual", readers=["me"])
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    refusal(
        lambda: streammerge.average(["org/gated", model], tmp_path / "out", download=mode),
        "gated",
        f"{hub.url}/org/gated",
    )
    assert_untouched(tmp_path / "out")
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    streammerge.average(["org/gated", model], tmp_path / "out", download=mode)


@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_a_revision_that_is_not_there(hub: Hub, model: Path, revision: str) -> None:
    hub.create("org/a", model)
    message = refusal(lambda: open_checkpoint(f"org/a@{revision}"), f"revision {revision} of org/a")
    assert "no such branch, tag or commit" in message
    assert f"{hub.url}/org/a/commits" in message


def test_a_folder_that_is_not_there(hub: Hub, model: Path) -> None:
    hub.create("org/a", model)
    refusal(lambda: open_checkpoint("org/a:unet"), "no folder unet", hub.head("org/a"))
    refusal(lambda: open_checkpoint("org/a:x.safetensors"), "x.safetensors", "is not there")


def test_no_network(hub: Hub, model: Path) -> None:
    hub.create("org/a", model)
    hub.stop()
    message = refusal(lambda: open_checkpoint("org/a"), "cannot be reached", hub.url)
    assert "Traceback" not in message
    assert "httpx" not in message


def test_offline_asks_nothing(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("org/a", model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refusal(lambda: open_checkpoint("org/a"), "HF_HUB_OFFLINE is set", "Unset it")
    assert len(hub.log) == 0


def test_repositories_without_weights_say_what_they_hold(hub: Hub) -> None:
    hub.create("org/pickle", {"pytorch_model.bin": b"x" * 100})
    hub.create("org/gguf", {"model.gguf": b"x" * 100})
    hub.create("org/lora", {"adapter_model.safetensors": b"x" * 100})
    hub.create("org/pipe", {"model_index.json": "{}", "unet/model.safetensors": b"x" * 100})
    hub.create("org/quant", {"quantize_config.json": "{}"})
    hub.commit("org/quant", {"model.safetensors": bytes((2, *[0] * 7)) + b"{}"})
    for repo, said in {
        "org/pickle": "pickle",
        "org/gguf": "GGUF",
        "org/lora": "adapter",
        "org/pipe": "diffusers",
        "org/quant": "quantized",
    }.items():
        with pytest.raises(UnsupportedError, match=said):
            open_checkpoint(repo)
    assert hub.log.downloaded() < 1000


def test_an_index_that_leaves_the_repository_is_refused(hub: Hub) -> None:
    index = '{"metadata": {}, "weight_map": {"w": "../../org/b/model.safetensors"}}'
    hub.create("org/a", {"model.safetensors.index.json": index})
    refusal(lambda: open_checkpoint("org/a"), "not a plain file name")


def test_an_adapter_that_is_not_there_is_named(hub: Hub, model: Path) -> None:
    hub.create("org/a", model)
    with pytest.raises(HubError, match="org/lora"):
        open_checkpoint("org/a+org/lora")


def test_a_download_mode_that_is_not_known(tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(RecipeError, match="Choose cache or stream"):
        streammerge.average(IDS, tmp_path / "out", download="torrent")  # type: ignore[arg-type]


def test_the_command_line_prints_one_short_error(
    tmp_path: Path, hub: Hub, pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    done = in_process(capsys, "average", "org/a", "org/nothing", "-o", tmp_path / "out")
    assert done.code == 1
    assert done.out == ""
    lines = done.err.strip().splitlines()
    assert len(lines) <= 4
    assert lines[0].startswith("error cannot open org/nothing: ")


def test_every_refusal_is_of_our_own_kind(hub: Hub) -> None:
    for reference in ("org/" + "x" * 100, "org/a--b", "org/a.git", "o..g/a"):
        with pytest.raises(StreammergeError):
            open_checkpoint(reference)


def test_what_a_hostile_server_lists_leads_out_of_no_folder(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("org/a", model)
    evil = [
        RepoFile(path="../out.json", size=1, oid="0" * 40),
        RepoFile(path="/etc/passwd", size=1, oid="0" * 40),
        RepoFile(path="config.json", size=2, oid="../../../../tmp/evil"),
    ]
    listed = HfApi.list_repo_tree
    monkeypatch.setattr(
        HfApi, "list_repo_tree", lambda *args, **options: [*evil, *listed(*args, **options)]
    )
    listing = open_listing("org/a", "", None)
    assert set(listing.files) == {".gitattributes", "config.json", "model.safetensors"}
    assert listing.files["config.json"].digest == ""
    info = SimpleNamespace(sha="../../../tmp/evil")
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **options: info)
    refusal(lambda: open_checkpoint("org/a"), "no commit", "HF_ENDPOINT")
