"""Are these relatives? What is known of models decides, and nothing that all models have alike."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch

import streammerge
from demo.models import BASE, FINE_TUNE
from streammerge.errors import UnrelatedError
from streammerge.relatives import ELEMENTS, MATRICES, Relation, compare
from streammerge.storage import DownloadMode
from streammerge.storage.local import BufferedReader
from tests.support.checkpoints import Tensors, like, random_tensor, write_checkpoint
from tests.support.cli import in_process
from tests.support.hub import Hub
from tests.support.merging import assert_untouched, write_all
from tests.support.preparing import prepare_average

LAYERS = 6
SHAPES = {"q.weight": (64, 64), "up.weight": (96, 64), "norm.weight": (64,), "up.bias": (96,)}


def model(seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """A model as independent trainings leave it: matrices of their own, norms near 1, biases 0."""
    tensors = {"embed.weight": random_tensor((100, 64), dtype, seed)}
    for layer in range(LAYERS):
        for number, (name, shape) in enumerate(SHAPES.items()):
            values = random_tensor(shape, dtype, 1000 * seed + 10 * layer + number)
            if len(shape) == 1:
                values = values / 8 + name.startswith("norm")
            tensors[f"layers.{layer}.{name}"] = values.to(dtype)
    return tensors


def relations(folder: Path, *models: Tensors) -> list[Relation]:
    paths = write_all(folder, models)
    prepared = prepare_average(paths, folder / "out")
    return compare(prepared.plan, prepared.checkpoints)


def unrelated(folder: Path, *models: Tensors) -> list[str]:
    """What the plan says of models that look unrelated."""
    paths = write_all(folder, models)
    notes = streammerge.plan_average(paths, folder / "out").notes
    return [note for note in notes if "unrelated" in note or "shares only" in note]


def test_fine_tunes_are_relatives(tmp_path: Path) -> None:
    base = model(1)
    models = [base, like(base, 2, scale=0.01), like(base, 3, scale=0.3), like(base, 4, scale=1.0)]
    assert unrelated(tmp_path, *models) == []
    found = relations(tmp_path, *models)
    for scale, relation in zip((0.01, 0.3, 1.0), found, strict=True):
        # The cosine of x and x + n, and |n| / |x|, where n is `scale` times as large as x.
        assert relation.cosine == pytest.approx(1 / math.sqrt(1 + scale**2), abs=0.03)
        assert relation.distance == pytest.approx(scale, rel=0.1)


def test_independent_models_are_not_whatever_their_norms_and_biases(tmp_path: Path) -> None:
    models = [model(1), model(2), model(3)]
    for name in models[0]:
        if len(models[0][name].shape) == 1:
            models[1][name] = models[0][name]
    notes = unrelated(tmp_path, *models)
    assert len(notes) == 2
    for number, note in enumerate(notes, start=1):
        assert f"m{number} looks unrelated to" in note
        assert "cosine is 0.0" in note or "cosine is -0.0" in note
        assert "distance 1.4" in note
    for relation in relations(tmp_path, *models):
        assert max(map(abs, relation.cosines.values())) < 0.1


def test_the_rest_of_a_merge_is_not_changed_by_it(tmp_path: Path) -> None:
    paths = write_all(tmp_path, [model(1), model(2)])
    result = streammerge.average(paths, tmp_path / "out")
    assert any("unrelated" in note for note in result.notes)
    assert streammerge.verify(tmp_path / "out", recompute="all").ok


def test_strict_makes_it_an_error_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, out = write_all(tmp_path, [model(1), model(2)]), tmp_path / "out"
    with pytest.raises(UnrelatedError, match="m1 looks unrelated to"):
        streammerge.average(paths, out, strict=True)
    for command in ("average", "plan"):
        done = in_process(capsys, command, *paths, "-o", out, "--strict")
        assert done.code == 1
        assert "unrelated" in done.err
    assert_untouched(out)
    relatives = write_all(tmp_path / "r", [model(1), like(model(1), 5)])
    assert streammerge.average(relatives, out, strict=True).parameters > 0


def test_the_command_line_says_it_before_the_merge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_all(tmp_path, [model(1), model(2)])
    done = in_process(capsys, "plan", *paths, "-o", tmp_path / "out")
    assert done.code == 0
    assert "looks unrelated to" in done.out


def test_constant_models_are_not_judged(tmp_path: Path) -> None:
    ones = {name: torch.ones_like(tensor) for name, tensor in model(1).items()}
    twos = {name: tensor * 2 for name, tensor in ones.items()}
    zeros = {name: tensor * 0 for name, tensor in ones.items()}
    assert relations(tmp_path, ones, twos, zeros) == []


def test_a_constant_model_shares_nothing_with_a_trained_one(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in model(1).items()}
    assert len(unrelated(tmp_path, model(1), zeros)) == 1


def test_a_mean_that_all_weights_share_hides_nothing(tmp_path: Path) -> None:
    shifted = [{name: tensor + 1 for name, tensor in model(seed).items()} for seed in (1, 2)]
    assert len(unrelated(tmp_path, *shifted)) == 1


def test_masks_that_all_models_carry_hide_nothing(tmp_path: Path) -> None:
    mask = torch.tril(torch.ones(128, 128, dtype=torch.bfloat16)).reshape(1, 1, 128, 128)
    masks = {f"layers.{layer}.attn.bias": mask.clone() for layer in range(LAYERS)}
    assert len(unrelated(tmp_path, model(1) | masks, model(2) | masks)) == 1
    assert unrelated(tmp_path / "r", model(1) | masks, like(model(1), 2) | masks) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_inf_neither_hide_nor_make_relatives(tmp_path: Path, bad: float) -> None:
    tuned, other = like(model(1), 2), model(3)
    for tensors in (tuned, other):
        for tensor in tensors.values():
            tensor.view(-1)[::3] = bad
    assert unrelated(tmp_path, model(1), tuned) == []
    assert len(unrelated(tmp_path / "u", model(1), other)) == 1
    full = {name: torch.full_like(tensor, bad) for name, tensor in tuned.items()}
    assert unrelated(tmp_path / "f", model(1), full) == []


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_no_number_is_too_large_or_small(tmp_path: Path, scale: float) -> None:
    base = {name: tensor.double() * scale for name, tensor in model(1).items()}
    other = {name: tensor.double() * scale for name, tensor in model(2).items()}
    near = {name: tensor * 1.5 for name, tensor in base.items()}
    related, foreign = relations(tmp_path, base, near, other)
    assert related.cosine == pytest.approx(1)
    assert abs(foreign.cosine) < 0.1


def test_dtypes_and_shards_make_no_difference(tmp_path: Path) -> None:
    base, tuned = model(1, torch.float32), like(model(1, torch.float32), 2)
    (wanted,) = relations(tmp_path / "a", base, tuned)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        cast = {name: tensor.to(dtype) for name, tensor in tuned.items()}
        (found,) = relations(tmp_path / str(dtype), base, cast)
        assert found.cosine == pytest.approx(wanted.cosine, abs=1e-4)
    write_checkpoint(tmp_path / "a" / "m1", tuned, shards=5, shuffle=1)
    (tmp_path / "a" / "m1" / "model.safetensors").unlink()
    prepared = prepare_average([tmp_path / "a" / "m0", tmp_path / "a" / "m1"], tmp_path / "out")
    assert compare(prepared.plan, prepared.checkpoints)[0].cosines == wanted.cosines


def test_parts_that_are_not_shared_are_named(tmp_path: Path) -> None:
    tuned = like(model(1), 2) | {"embed.weight": model(9)["embed.weight"]}
    (note,) = unrelated(tmp_path, model(1), tuned)
    assert "m1 shares only a part of its weights with" in note
    assert "embed.weight" in note


def test_models_that_are_not_merged_are_not_looked_at(tmp_path: Path) -> None:
    base = model(1)
    paths = write_all(tmp_path, [base, model(2), like(base, 3)])
    notes = streammerge.plan_average(paths, tmp_path / "out", weights=[1, 0, 1]).notes
    assert not [note for note in notes if "unrelated" in note]
    notes = streammerge.plan_average(paths[:2], tmp_path / "out", keep=["*.weight"]).notes
    assert not [note for note in notes if "unrelated" in note]


def test_it_reads_a_few_ranges_and_takes_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {f"layers.{i}.weight": random_tensor((500, 1000), torch.float32, i) for i in range(20)}
    paths = write_all(tmp_path, [large, like(large, 2)])
    prepared = prepare_average(paths, tmp_path / "out")
    reads: list[int] = []
    fetch = BufferedReader.fetch

    def counted(self: BufferedReader, offset: int, length: int, buffer: memoryview) -> memoryview:
        reads.append(length)
        return fetch(self, offset, length, buffer)

    monkeypatch.setattr(BufferedReader, "fetch", counted)
    begin = time.perf_counter()
    compare(prepared.plan, prepared.checkpoints)
    seconds = time.perf_counter() - begin
    assert len(reads) == 2 * MATRICES
    assert max(reads) <= 4 * ELEMENTS
    assert seconds < 0.5, "it takes 0.03 s on an idle machine"


@pytest.mark.skipif(
    not (BASE.path.is_dir() and FINE_TUNE.path.is_dir()), reason="`make demo` fetches the models"
)
def test_a_real_model_and_its_fine_tune(tmp_path: Path) -> None:
    prepared = prepare_average([BASE.path, FINE_TUNE.path], tmp_path / "out", strict=True)
    (relation,) = compare(prepared.plan, prepared.checkpoints)
    assert min(relation.cosines.values()) > 0.99
    assert relation.distance < 0.1


@pytest.mark.parametrize("download", ["cache", "stream"])
def test_models_on_the_hub_are_sampled_by_ranges_and_not_downloaded(
    tmp_path: Path, hub: Hub, download: DownloadMode
) -> None:
    large = {f"layers.{i}.weight": random_tensor((500, 1000), torch.float16, i) for i in range(20)}
    other = {name: tensor.flip(0).contiguous() for name, tensor in large.items()}
    for repo, tensors in (("org/a", large), ("org/b", like(large, 2)), ("org/c", other)):
        hub.create(repo, write_checkpoint(tmp_path / repo, tensors, shards=3))
    for repo, foreign in (("org/b", 0), ("org/c", 1)):
        hub.log.clear()
        plan = streammerge.plan_average(["org/a", repo], tmp_path / "out", download=download)
        assert len([note for note in plan.notes if "unrelated" in note]) == foreign
        shards = hub.log.ranges("*.safetensors")
        samples = [span for span in shards if span[1] and span[1] - span[0] == 2 * ELEMENTS]
        assert len(samples) == 2 * MATRICES
        assert len(shards) == 2 * MATRICES + 2 * 3, "besides the samples, a header of each shard"
