"""Modules in memory: averaged to a new one of the same kind, while the inputs stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import streammerge as sm
from streammerge.errors import CoverageError, RecipeError, TensorsDifferError, UnsupportedError
from tests.support.checkpoints import random_tensor, read_checkpoint, tiny_llama
from tests.support.merging import assert_exact, assert_same_bits, refusal

MAKERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(37, 11),
    "linear without bias": lambda: nn.Linear(5, 3, bias=False),
    "convolution": lambda: nn.Conv2d(3, 8, 3),
    "batch norm": lambda: nn.BatchNorm2d(6),
    "layer norm": lambda: nn.LayerNorm((4, 5)),
    "embedding": lambda: nn.Embedding(17, 9),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "recurrent": lambda: nn.LSTM(4, 6, num_layers=2),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
    "a scalar": lambda: Scale(),
    "an empty parameter": lambda: Scale(0, 3),
    "network": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 4)),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


class Scale(nn.Module):
    """One tensor, a scalar by default."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))
        self.offset = nn.Parameter(torch.ones(2))


class Tied(nn.Module):
    """An embedding and an output head that are one parameter."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tie:
            self.head.weight = self.embedding.weight


def random_models(
    make: Callable[[], nn.Module], count: int, dtype: torch.dtype = torch.float32
) -> list[nn.Module]:
    """Modules with random floats everywhere, buffers included."""
    models = []
    for seed in range(count):
        model = make().to(dtype)
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(random_tensor(tensor.shape, dtype, seed * 100 + number))
        models.append(model)
    return models


def bits(model: nn.Module) -> dict[str, tuple[bytes, int, int]]:
    """The bytes, address and version of each tensor."""
    return {
        name: (
            t.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes(),
            t.data_ptr(),
            t._version,
        )
        for name, t in model.state_dict(keep_vars=True).items()
    }


def assert_average(
    merged: nn.Module, models: Sequence[nn.Module], weights: Sequence[float] | None = None
) -> None:
    """Every float is the exact mean, and no tensor is an input's."""
    held = [model.state_dict() for model in models]
    assert list(merged.state_dict()) == list(held[0])
    for name, tensor in merged.state_dict().items():
        inputs = [tensors[name] for tensors in held]
        if tensor.is_floating_point():
            assert_exact(tensor, inputs, weights)
        else:
            assert torch.equal(tensor, inputs[0])
        if tensor.numel():
            assert tensor.data_ptr() not in {t.data_ptr() for t in inputs}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_the_average_of_modules_is_exact(kind: str, dtype: torch.dtype) -> None:
    models = random_models(MAKERS[kind], 3, dtype)
    before = [bits(model) for model in models]
    merged = sm.average(models)
    assert type(merged).__name__ == type(models[0]).__name__
    assert_average(merged, models)
    assert [bits(model) for model in models] == before


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_weights_count_in_proportion_and_as_written(dtype: torch.dtype) -> None:
    models = random_models(lambda: nn.Linear(300, 70), 3, dtype)
    assert_average(sm.average(models, weights=[5, 3, 2]), models, [5, 3, 2])
    shares = [0.7, 0.2, 0.1]
    assert_average(sm.weighted_average(models, shares, device="auto"), models, shares)


def test_one_model_is_copied() -> None:
    for kind in MAKERS:
        (model,) = random_models(MAKERS[kind], 1)
        merged = sm.average([model])
        assert merged is not model
        for (name, ours), theirs in zip(
            merged.state_dict().items(), model.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), name
            assert ours.numel() == 0 or ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, nn.ReLU, lambda: nn.Sequential(nn.Tanh())])
def test_modules_without_parameters_come_back_as_a_copy(make: Callable[[], nn.Module]) -> None:
    models = [make(), make()]
    merged = sm.average(models)
    assert type(merged) is type(models[0])
    assert merged not in models


def test_the_result_is_like_the_first_model() -> None:
    models = random_models(lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(), Scale()), 2)
    models[0].eval()
    models[0][0].weight.requires_grad_(False)
    models[0][1].train()
    calls: list[Any] = []
    models[0].register_forward_hook(lambda *arguments: calls.append(arguments))
    models[0][0].note = "of the first"
    merged = sm.average(models)
    assert [part.training for part in merged.modules()] == [False, False, True, False]
    assert [p.requires_grad for p in merged.parameters()] == [False, True, True, True]
    assert (models[1].training, models[1][0].weight.requires_grad) == (True, True)
    assert merged[0].note == "of the first"
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in merged.parameters())
    merged[0].eval()


def test_the_result_can_be_trained_and_the_inputs_gradients_stay_away() -> None:
    models = random_models(lambda: nn.Linear(3, 2), 2)
    models[0](torch.ones(1, 3)).sum().backward()
    gradient = models[0].weight.grad
    merged = sm.average(models)
    assert merged.weight.grad is None
    assert models[0].weight.grad is gradient
    merged(torch.ones(1, 3)).sum().backward()
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter -= parameter.grad
    assert_average(sm.average(models), models)


def test_dtypes_may_differ_and_the_first_models_is_taken_unless_said() -> None:
    models = random_models(lambda: nn.Linear(50, 40), 2)
    half = copy.deepcopy(models[0]).to(torch.bfloat16)
    for name, tensor in sm.average([half, models[1]]).state_dict().items():
        inputs = [m.state_dict()[name] for m in (half, models[1])]
        assert_exact(tensor, inputs, dtype=torch.bfloat16)
    for dtype in (torch.float32, "float32"):
        merged = sm.average([half, models[1]], dtype=dtype)
        assert {p.dtype for p in merged.parameters()} == {torch.float32}
        assert all(p.requires_grad for p in merged.parameters())


def test_memory_formats_stay() -> None:
    models = random_models(lambda: nn.Conv2d(3, 8, 5), 3)
    for model in models[:2]:
        model.to(memory_format=torch.channels_last)
    merged = sm.average(models)
    assert merged.weight.is_contiguous(memory_format=torch.channels_last)
    assert_average(merged, models)


def test_tied_weights_stay_tied() -> None:
    models = random_models(Tied, 3)
    merged = sm.average(models)
    assert merged.head.weight is merged.embedding.weight
    assert_average(merged, models)


def test_weights_tied_by_their_memory_alone_stay_tied() -> None:
    models = random_models(lambda: Tied(tie=False), 2)
    for model in models:
        model.head.weight.data = model.embedding.weight.data
    merged = sm.average(models)
    assert merged.head.weight is not merged.embedding.weight
    assert merged.head.weight.data_ptr() == merged.embedding.weight.data_ptr()
    assert_average(merged, models)


def test_a_submodule_that_occurs_twice_stays_one() -> None:
    def twice() -> nn.Module:
        layer = nn.Linear(3, 3)
        return nn.Sequential(layer, nn.ReLU(), layer)

    models = random_models(twice, 2)
    merged = sm.average(models)
    assert merged[0] is merged[2]
    assert_average(merged, models)


def test_tied_in_the_result_must_be_tied_in_all() -> None:
    tied, untied = random_models(Tied, 1)[0], random_models(lambda: Tied(tie=False), 1)[0]
    refusal(lambda: sm.average([tied, untied]), r"head\.weight", r"models\[1\]", "tie")
    merged = sm.average([untied, tied])
    assert merged.head.weight.data_ptr() != merged.embedding.weight.data_ptr()
    assert_average(merged, [untied, tied])


def test_buffers_of_integers_are_copied_when_equal_and_one_wins_when_told() -> None:
    models = random_models(lambda: nn.BatchNorm1d(4), 3)
    models[1].num_batches_tracked += 7
    with pytest.raises(TensorsDifferError) as caught:
        sm.average(models)
    assert "num_batches_tracked" in caught.value.message
    assert "models[1]" in caught.value.message
    assert "keep=['*.num_batches_tracked']" in caught.value.remedy
    for keep in ("*num_batches_tracked", ["num_*"]):
        assert int(sm.average(models, keep=keep).num_batches_tracked) == 0
    merged = sm.average([models[1], models[0], models[2]], keep="*num_batches_tracked")
    assert int(merged.num_batches_tracked) == 7


def test_integers_alone_are_held_against_each_other_too() -> None:
    def counter(value: int) -> nn.Module:
        module = nn.Module()
        module.register_buffer("count", torch.tensor([value, 5]))
        return module

    assert torch.equal(sm.average([counter(3), counter(3)]).count, torch.tensor([3, 5]))
    with pytest.raises(TensorsDifferError, match="count"):
        sm.average([counter(3), counter(4)])
    assert torch.equal(
        sm.average([counter(3), counter(4)], keep="count").count, torch.tensor([3, 5])
    )


def test_kept_floats_are_the_first_models() -> None:
    models = random_models(MAKERS["network"], 2)
    merged = sm.average(models, keep=["0.*", "2.bias"])
    for name, tensor in merged.state_dict().items():
        first = torch.equal(tensor, models[0].state_dict()[name])
        assert first is (name.startswith("0.") or name == "2.bias" or "tracked" in name)
    kept = sm.average(models, keep="*")
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept.state_dict().values(), models[0].state_dict().values(), strict=True)
    )
    refusal(lambda: sm.average(models, keep="encoder.*"), "keep", r"encoder\.\*")


def test_a_tied_weight_is_kept_by_either_name() -> None:
    models = random_models(Tied, 2)
    merged = sm.average([nn.Sequential(m, nn.Linear(2, 2)) for m in models], keep="0.head.*")
    assert torch.equal(merged[0].embedding.weight, models[0].embedding.weight)


def test_buffers_that_are_not_saved_come_from_the_first_model() -> None:
    def rotary(base: float) -> nn.Module:
        module = nn.Linear(2, 2)
        module.register_buffer("inv_freq", torch.tensor([base]), persistent=False)
        return module

    models = [rotary(1.0), rotary(2.0)]
    merged = sm.average(models)
    assert merged.inv_freq.item() == 1.0
    assert merged.inv_freq.data_ptr() != models[0].inv_freq.data_ptr()


def test_the_mode_of_the_caller_does_not_matter() -> None:
    models = random_models(lambda: nn.Linear(9, 9), 2)
    with torch.inference_mode():
        inference = copy.deepcopy(models)
        merged = sm.average(models)
        again = sm.average(inference)
    assert not merged.weight.is_inference()
    assert not again.weight.is_inference()
    assert_average(merged, models)
    assert_average(again, models)
    with torch.no_grad(), torch.device("meta"):
        assert_average(sm.average(models), models)


def test_the_number_of_threads_of_the_process_stays() -> None:
    before = torch.get_num_threads()
    sm.average(random_models(lambda: nn.Linear(9, 9), 2))
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_modules_on_a_device_stay_there_and_get_the_same_bits(device: str) -> None:
    models = random_models(MAKERS["network"], 3, torch.bfloat16)
    expected = sm.average(models)
    on_device = [copy.deepcopy(model).cuda() for model in models]
    for model in on_device:
        model.to(memory_format=torch.channels_last)
    merged = sm.average(on_device, device=device)
    assert all(tensor.is_cuda for tensor in _all_tensors(merged))
    for name, tensor in merged.cpu().state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])


# What is refused.


class Custom(nn.Linear):
    """A linear layer under another name."""


class Keeper(nn.Linear):
    """A module with state that is no tensor."""

    def get_extra_state(self) -> object:
        return {"steps": 3}

    def set_extra_state(self, state: object) -> None:
        pass


class Stubborn(nn.Linear):
    """A module that copies itself in its own way."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
        return Stubborn(self.in_features, self.out_features)


class Locked(nn.Linear):
    """A module that cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Locked:
        raise TypeError("cannot pickle '_thread.lock' object")


def first_and(other: object) -> list[Any]:
    return [nn.Linear(3, 4), other]


@pytest.mark.parametrize(
    ("models", "error", "patterns"),
    [
        ([], RecipeError, ["no models"]),
        (first_and(nn.Linear(3, 5)), CoverageError, [r"weight: \[4, 3\].*\[5, 3\]", "bias"]),
        (first_and(nn.Linear(1, 4)), CoverageError, [r"\[4, 3\] in models\[0\]", r"\[4, 1\]"]),
        (first_and(nn.Linear(3, 4, bias=False)), CoverageError, [r"bias: not in models\[1\]"]),
        (first_and(nn.Linear(3, 4).state_dict()), RecipeError, ["Linear", "OrderedDict"]),
        (first_and(Custom(3, 4)), RecipeError, ["Linear", "Custom", "state dicts"]),
        (first_and(None), RecipeError, [r"models\[1\] is a NoneType"]),
        (first_and(torch.ones(3)), RecipeError, [r"models\[1\] is a Tensor"]),
        (first_and("path/to/model"), RecipeError, [r"models\[1\] is a str"]),
        ([Keeper(2, 2), Keeper(2, 2)], UnsupportedError, [r"models\[0\]", "_extra_state"]),
        ([Stubborn(2, 2), Stubborn(2, 2)], UnsupportedError, ["copied", "weight"]),
        ([Locked(2, 2), Locked(2, 2)], UnsupportedError, ["copied", "lock", "state dicts"]),
        ([nn.LazyLinear(3), nn.LazyLinear(3)], UnsupportedError, ["no shape yet"]),
    ],
)
def test_models_that_do_not_go_together_are_refused(
    models: list[Any], error: type[Exception], patterns: list[str]
) -> None:
    refusal(lambda: sm.average(models), *patterns)
    with pytest.raises(error):
        sm.average(models)


def test_modules_that_compute_otherwise_are_refused_although_their_tensors_fit() -> None:
    models = [nn.Sequential(nn.Linear(2, 2), act) for act in (nn.ReLU(), nn.Tanh())]
    refusal(lambda: sm.average(models), "part 1", "ReLU", "Tanh")


def test_an_object_that_is_given_twice_is_refused() -> None:
    model = nn.Linear(2, 2)
    refusal(lambda: sm.average([model, nn.Linear(2, 2), model]), r"models\[2\]", r"models\[0\]")


def test_one_model_instead_of_a_list_is_refused() -> None:
    model = nn.Linear(2, 2)
    for given in (model, model.state_dict(), nn.ModuleList([model]), "path"):
        refusal(lambda given=given: sm.average(given), "list")


def test_the_remedies_speak_python() -> None:
    models = random_models(lambda: nn.Linear(3, 3), 2)
    models[1].weight.data[1, 1] = float("nan")
    message = refusal(lambda: sm.average(models), "weight", r"models\[1\]", "allow_nonfinite=True")
    assert "--" not in message
    merged = sm.average(models, allow_nonfinite=True)
    assert merged.weight.isnan().sum() == 1
    message = refusal(lambda: sm.average([nn.Linear(2, 2), nn.Linear(2, 3)]), r"keep=\[GLOB\]")
    assert "--" not in message


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"weights": [1, 2, 3]}, "3 weights for 2 models"),
        ({"weights": [1, -1]}, "sum to zero"),
        ({"weights": [1, float("nan")]}, "nan"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": torch.int64}, "int64"),
        ({"device": "cuda:99"}, "cuda:99.*\\n.*device='cpu'"),
        ({"memory": "1GiB"}, "memory"),
        ({"out": "folder"}, "in memory"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], pattern: str) -> None:
    refusal(lambda: sm.average([nn.Linear(2, 2), nn.Linear(2, 2)], **options), pattern)


def test_paths_need_a_folder_to_write() -> None:
    refusal(lambda: sm.average(["a", "b"]), "folder", r"average\(models, out\)")


def test_buffers_share_nothing_with_the_inputs() -> None:
    models = random_models(lambda: nn.BatchNorm1d(3), 2)
    merged = sm.average(models)
    theirs: set[int] = {t.data_ptr() for m in models for t in _all_tensors(m)}
    assert theirs.isdisjoint(t.data_ptr() for t in _all_tensors(merged))


def _all_tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_of_transformers_gets_the_bits_of_its_files(tmp_path: Path, tied: bool) -> None:
    paths = [str(tiny_llama(tmp_path / f"m{seed}", seed, tied=tied)) for seed in range(3)]
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16") for path in paths]
    merged = sm.average(models, weights=[0.5, 0.3, 0.2])
    sm.average(paths, tmp_path / "out", weights=[0.5, 0.3, 0.2])
    written = read_checkpoint(tmp_path / "out")
    state = merged.state_dict()
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied
    assert state.keys() - written.keys() == ({"lm_head.weight"} if tied else set())
    assert_same_bits({name: state[name] for name in written}, written)
    assert merged.config.to_dict() == models[0].config.to_dict()
    assert merged(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
