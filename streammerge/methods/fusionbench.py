"""FusionBench's words for settings, under its names for methods (docs/methods.md has the table).

Its names are aliases of our methods. Where it also calls a setting something else, or means another
thing by it, that is translated here; what cannot be honoured is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from streammerge.errors import ParameterError
from streammerge.methods.parameters import Value

Settings = dict[str, Value]
Read = Callable[[str, Value], Mapping[str, Value | tuple[Value, ...]]]
"""From its key and value to ours; a tuple has one value for each model."""

ELSEWHERE = {
    "dare/ties_merging": "FusionBench's trims what dropping leaves, and `dare_ties` trims nothing",
    "linear/llama_expo": "it has a factor for each kind of layer; write `expo` with filters",
    "linear/llama_expo_with_dare": "here `expo` and `dare_linear` are two merges",
}
"""Its methods that are near ours, and yet others."""

_PER_TENSOR = "trims each tensor by itself; FusionBench trims the whole model at once"
NOTES = dict.fromkeys(("ties_merging", "linear/ties_merging_for_causallm"), _PER_TENSOR)
"""What to know of a result that is near FusionBench's, and not the same."""


@dataclass(frozen=True, slots=True)
class Words:
    """How the settings below one of its names are read.

    Attributes:
        keys: its own settings.
        implied: settings of ours that its name implies, unless the recipe says otherwise.
        needed: those of its settings that have no default.
        listed: those that have a value for each model where they are a list.
        most: models that the translation holds for; more are refused for the reason that follows.
    """

    keys: Mapping[str, Read] = field(default_factory=dict)
    implied: Mapping[str, Value] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    listed: tuple[str, ...] = ()
    most: tuple[int, str] | None = None


def translate(
    name: str,
    settings: Mapping[str, Value],
    each: Sequence[Mapping[str, Value]],
    written: Iterable[Mapping[str, object]],
) -> tuple[Settings, list[Settings]]:
    """Return the settings of a method in our words.

    Args:
        name: of the method, as the recipe has it; under our own names nothing changes.
        settings: for all models, for one tensor.
        each: those of each model.
        written: all settings of the recipe, as they are before they are resolved for one tensor.

    Raises:
        ParameterError: a setting that cannot be honoured here.
    """
    own: list[Settings] = [dict(model) for model in each]
    if name not in WORDS:
        return dict(settings), own
    words = WORDS[name]
    _check(name, words, settings, len(each), written)
    common: Settings = {}
    for key, value in settings.items():
        for ours, meant in _ours(words, key, value, common).items():
            if not isinstance(meant, tuple):
                common[ours] = meant
                continue
            if len(meant) != len(own):
                text = f"{name} takes {len(meant)} models, not {len(own)}"
                raise ParameterError(text, "", key)
            for values, one in zip(own, meant, strict=True):
                values[ours] = one
    for number, model in enumerate(each):
        own[number] = {k: v for k, v in own[number].items() if k not in words.keys}
        for key in model.keys() & words.keys.keys():
            for ours, meant in _ours(words, key, model[key], own[number]).items():
                if isinstance(meant, tuple):
                    raise ParameterError(f"{key} of {name} is one for all models", "", key, number)
                own[number][ours] = meant
    return {**words.implied, **common}, own


def _check(
    name: str,
    words: Words,
    settings: Mapping[str, Value],
    models: int,
    written: Iterable[Mapping[str, object]],
) -> None:
    for key in words.needed:
        if key not in settings:
            raise ParameterError(f"{name} needs {key}", "Add it to the recipe's `parameters`.", key)
    for key, value in [(k, said.get(k)) for said in written for k in words.listed]:
        if isinstance(value, tuple) and all(isinstance(part, int | float) for part in value):
            raise ParameterError(
                f"{key} of {name} is a list, which here means a gradient over the layers",
                "Give one number; gradients go with the method's own name: `streammerge methods`.",
                key,
            )
    if words.most is not None and models > words.most[0]:
        raise ParameterError(f"{name} with {models} models: {words.most[1]}")


def _ours(
    words: Words, key: str, value: Value, known: Mapping[str, Value]
) -> Mapping[str, Value | tuple[Value, ...]]:
    found = words.keys[key](key, value) if key in words.keys else {key: value}
    for ours in found:
        if ours in known:
            raise ParameterError(f"{key} says what is said already: {ours}", "Remove one.", key)
    return found


def _number(key: str, value: Value) -> Fraction:
    """Return a number as it is written: 1 − 0.9 is 0.1 then."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(f"{key} is {value!r}, which it cannot be", "Give a number.", key)
    return Fraction(repr(value))


def _within(key: str, value: Value) -> Fraction:
    number = _number(key, value)
    if not 0 <= number <= 1:
        raise ParameterError(f"{key} is {value!r}, which it cannot be", "Give 0 to 1.", key)
    return number


def _dropped(key: str, value: Value) -> dict[str, Value]:
    return {"density": float(1 - _within(key, value))}


def _percentage(key: str, value: Value) -> dict[str, Value]:
    """Return the share to keep: FusionBench takes numbers above 1 for percentages."""
    number = _number(key, value)
    share = number / 100 if number > 1 else number
    if not 0 < share <= 1 or number == 1:
        raise ParameterError(
            f"{key} is {value!r}, which it cannot be",
            "Give the percentage to keep, above 1 to 100; or a share below 1.",
            key,
        )
    return {"density": float(share)}


def _function(key: str, value: Value) -> dict[str, Value]:
    if value not in ("sum", "mean"):
        raise ParameterError(f"{key} is {value!r}, which is not here", "Give sum or mean.", key)
    return {"normalize": value == "mean"}


def _between(key: str, value: Value) -> dict[str, tuple[Value, ...]]:
    t = _within(key, value)
    return {"weight": (float(1 - t), float(t))}


def _only(allowed: Value, remedy: str = "") -> Read:
    """Return what takes one value, which is what happens here anyway."""

    def read(key: str, value: Value) -> dict[str, Value]:
        if value != allowed:
            told = str(allowed).lower() if isinstance(allowed, bool) else allowed
            raise ParameterError(f"{key} is {value!r}, and can only be {told} here", remedy, key)
        return {}

    return read


def _refused(remedy: str) -> Read:
    def read(key: str, value: Value) -> dict[str, Value]:
        raise ParameterError(f"{key} is not known here", remedy, key)

    return read


_RULES = "Say what happens to single tensors below `rules:`."
_BACKBONE = dict.fromkeys(("merge_backbone", "backbone_only"), _only(False, _RULES))
_WEIGHTS = {"weights": _refused("Write `weight` below the `parameters` of each model.")}
_DARE = {"sparsity_ratio": _dropped, "only_on_linear_weights": _only(False, _RULES)}
_TIES = {"threshold": _percentage, "merge_func": _function, "remove_keys": _refused(_RULES)}
_SLERP = Words({"DOT_THRESHOLD": _only(0.9995), "epsilon": _only(1e-8)})
_SPECTRAL = {"exclude_keys": _refused(_RULES)}
_ANGLES = "FusionBench averages the angles, and `model_stock` their cosines, which two models share"

WORDS: Mapping[str, Words] = {
    "weighted_average": Words(_WEIGHTS),
    "linear/weighted_average": Words(_WEIGHTS),
    "linear/weighted_average_for_llama": Words(_WEIGHTS | _BACKBONE),
    "linear/simple_average_for_causallm": Words(_BACKBONE),
    "linear/simple_average_for_llama": Words(_BACKBONE),
    "linear/linear_interpolation": Words({"t": _between}, needed=("t",)),
    "linear/task_arithmetic_for_causallm": Words(_BACKBONE),
    "linear/task_arithmetic_for_llama": Words(_BACKBONE),
    "ties_merging": Words(_TIES, {"normalize": False}),
    "linear/ties_merging_for_causallm": Words(_TIES | _BACKBONE, {"normalize": False}),
    "dare/simple_average": Words(_DARE, {"normalize": True}),
    "dare/task_arithmetic": Words(_DARE),
    "slerp/slerp": _SLERP,
    "slerp/slerp_lm": _SLERP,
    "magmax/magmax": Words({"inplace": lambda key, value: {}}),
    "model_stock/model_stock": Words({"ignore_keys": _refused(_RULES)}, most=(2, _ANGLES)),
    "isotropic_merging/iso_c": Words(_SPECTRAL),
    "isotropic_merging/iso_cts": Words(_SPECTRAL),
    "task_singular_vector/TaskSingularVectorMerging": Words(
        _SPECTRAL | {"return_single_task_models": _only(False)}, listed=("alpha",)
    ),
}
"""By its name for the method."""
