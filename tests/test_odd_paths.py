"""Paths with bytes that are no Unicode, with spaces, quotes, newlines and brackets in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import streammerge
from tests.support.checkpoints import add_side_files, read_checkpoint, write_checkpoint
from tests.support.cli import in_process, run
from tests.support.merging import assert_untouched, refusal
from tests.support.outputs import manifest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have only Unicode names")
RAW = os.fsdecode(b"m\xffodel")


def checkpoint(folder: Path) -> Path:
    return add_side_files(write_checkpoint(folder, {"w.weight": torch.ones(4, 4)}))


def test_a_model_whose_path_is_no_unicode_is_refused_by_name(tmp_path: Path) -> None:
    good, bad = checkpoint(tmp_path / "good"), checkpoint(tmp_path / RAW)
    for models in ([good, bad], [bad, good]):
        refusal(
            lambda m=models: streammerge.average(m, tmp_path / "out"),
            r"m\\udcffodel is not Unicode",
            "link",
        )
    assert_untouched(tmp_path / "out")


def test_the_remedy_for_it_works(tmp_path: Path) -> None:
    (tmp_path / "plain").symlink_to(checkpoint(tmp_path / RAW))
    streammerge.average([tmp_path / "plain"] * 2, tmp_path / "out")
    assert streammerge.verify(tmp_path / "out", recompute="all").ok


def test_an_output_whose_path_is_no_unicode_is_refused_by_name(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good")
    refusal(lambda: streammerge.average([good, good], tmp_path / RAW), r"\\udcff", "plain name")
    assert not (tmp_path / RAW).exists()


def test_a_weight_file_whose_name_is_no_unicode_is_refused(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good")
    os.rename(good / "model.safetensors", good / f"{RAW}.safetensors")
    refusal(lambda: streammerge.average([good, good], tmp_path / "out"), r"\\udcff", "Rename")
    file = good / f"{RAW}.safetensors"
    refusal(lambda: streammerge.average([file, file], tmp_path / "out"), r"\\udcff", "Rename")


def test_side_files_whose_names_are_no_unicode_stay_behind(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good")
    (good / f"LICENSE{RAW}").write_text("no")
    streammerge.average([good, good], tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").exists()
    assert not (tmp_path / "out" / f"LICENSE{RAW}").exists()
    assert streammerge.verify(tmp_path / "out").ok


def test_the_command_line_says_it_in_a_line(tmp_path: Path) -> None:
    good = checkpoint(tmp_path / "good")
    done = run("average", good, tmp_path / RAW, "-o", tmp_path / "out")
    assert done.code == 1
    assert "Traceback" not in done.err
    assert r"m\udcffodel" in done.err
    assert len(done.err.strip().splitlines()) == 2


@pytest.mark.parametrize("name", ["a b", "it's", 'a "b"', "[red]x[/]", "ä→ö", "a\nb", "$HOME;`x`"])
def test_other_names_go_through_everything(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = checkpoint(tmp_path / name / "model"), tmp_path / name / "out"
    done = in_process(capsys, "average", model, model, "-o", out)
    assert (done.code, done.err.count("error")) == (0, 0)
    assert read_checkpoint(out).keys() == {"w.weight"}
    assert [m["model"] for m in manifest(out)["recipe"]["models"]] == [str(model)] * 2
    done = in_process(capsys, "verify", out, "--recompute", "all")
    assert done.code == 0, done.out
