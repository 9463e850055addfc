"""What a user writes to name a model, taken apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from streammerge.errors import CheckpointError
from streammerge.references import Reference, parse_reference
from tests.support.merging import refusal

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo_id", "revision", "subfolder"),
    [
        ("org/name", "org/name", "", ""),
        ("org/name@v2", "org/name", "v2", ""),
        ("org/name@refs/pr/4", "org/name", "refs/pr/4", ""),
        ("org/name@v1.0+cu118", "org/name", "v1.0+cu118", ""),
        (f"org/name@{COMMIT}", "org/name", COMMIT, ""),
        ("org/name:text_encoder", "org/name", "", "text_encoder"),
        ("org/name@v2:deep/er", "org/name", "v2", "deep/er"),
        ("org/name:model.safetensors", "org/name", "", "model.safetensors"),
        ("My-Org/Na.me_1@main", "My-Org/Na.me_1", "main", ""),
        ("hf://org/name@v2:x", "org/name", "v2", "x"),
    ],
)
def test_a_name_on_the_hub(text: str, repo_id: str, revision: str, subfolder: str) -> None:
    found = parse_reference(text)
    assert found == Reference(text, "", repo_id, revision, subfolder)
    assert not found.is_local


def test_what_exists_on_this_machine_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "org/name@v2", "org/a+org", "org/name:x"):
        Path(name).mkdir(parents=True)
        assert parse_reference(name) == Reference(name, path=name)
    assert parse_reference(str(tmp_path)) == Reference(str(tmp_path), path=str(tmp_path))
    assert parse_reference("hf://org/name") == Reference("hf://org/name", repo_id="org/name")
    assert parse_reference("org/name@v3").repo_id == "org/name"


@pytest.mark.parametrize(
    ("text", "model", "adapter"),
    [
        ("org/m+org/l", Reference("", repo_id="org/m"), Reference("org/l", repo_id="org/l")),
        (
            "org/m@v1+cu1+org/l@v2:sub",
            Reference("", repo_id="org/m", revision="v1+cu1"),
            Reference("org/l@v2:sub", repo_id="org/l", revision="v2", subfolder="sub"),
        ),
        ("here+org/l", Reference("", path="here"), Reference("org/l", repo_id="org/l")),
        ("org/m+here", Reference("", repo_id="org/m"), Reference("here", path="here")),
        ("he+re+here", Reference("", path="he+re"), Reference("here", path="here")),
    ],
)
def test_an_adapter_is_split_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, model: Reference, adapter: Reference
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    Path("he+re").mkdir()
    found = parse_reference(text)
    assert found.adapter == adapter
    assert (found.text, found.path, found.repo_id, found.revision, found.subfolder) == (
        text,
        model.path,
        model.repo_id,
        model.revision,
        model.subfolder,
    )
    assert found.is_local == bool(model.path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "/no/such/folder",
        "./no/such",
        "a/b/c",
        "org/name@",
        "org/name:",
        "org/name:../up",
        "org/name:/etc",
        "org/name@../../up",
        "org/name:a//b",
        "org/name:a:b",
        "org/name@v 2",
        "org/näme",
        "-org/name",
        "https://huggingface.co/org/name",
        "hf://name",
        "org/name\0",
        "gpt2+lora",
    ],
)
def test_what_can_be_neither_is_refused_with_what_can(text: str) -> None:
    message = refusal(lambda: parse_reference(text), "no checkpoint", "org/name")
    assert "\0" not in message


def test_the_refusal_is_an_error_about_a_checkpoint() -> None:
    with pytest.raises(CheckpointError):
        parse_reference("nothing")


@pytest.mark.parametrize("text", ["org/name", "org/name@v2", "org/name@v2:a/b", "hf://org/name:a"])
def test_pinned_is_a_reference_to_the_same_place(text: str) -> None:
    found = parse_reference(text)
    again = parse_reference(found.pinned(COMMIT))
    assert (again.repo_id, again.revision) == (found.repo_id, COMMIT)
    assert again.subfolder == found.subfolder
