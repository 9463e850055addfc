"""Which tensor comes from where: the inputs' names and shapes held against each other.

Every tensor of every input is decided here, by the recipe's rules or by one of three general ones:
equal shapes are merged, integers are copied when equal, and two known reasons explain an absence
(a tied output head, a buffer that loaders compute). All else is an error that lists every case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from streammerge.errors import CoverageError, RecipeError, listing, printable
from streammerge.recipe import Recipe, Treatments
from streammerge.tensors import TensorInfo
from streammerge.views.rows import padded_tensors

Action = Literal["merge", "equal", "copy"]

# Buffers that models rebuild when they load; old files carry them, newer ones do not.
_REBUILT_BUFFERS = (
    "position_ids",
    "token_type_ids",
    "inv_freq",
    "masked_bias",
    "num_batches_tracked",
)
# Output heads and second embeddings that share the input embedding's storage when it is tied.
_TIED_NAMES = (
    "lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "predictions.decoder.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "shared.weight",
    "embeddings.weight",
    "embed_in.weight",
)
_ROWS = (
    "Where vocabularies were only padded to different sizes, give --rows min (the rows that all "
    "models have), max (all rows; those that a model lacks come from the first that has them) or "
    "base (as many as the first model has). "
)


class Holder(Protocol):
    """The part of a checkpoint that matters here."""

    label: str
    tensors: dict[str, TensorInfo]

    @property
    def config(self) -> Mapping[str, Any]:
        """The object in config.json."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one tensor.

    Attributes:
        tensor: name, dtype and shape in the output.
        action: "merge"; "equal": copied after a check that all sources agree; "copy": from one.
        sources: indices of the models it comes from.
    """

    tensor: TensorInfo
    action: Action
    sources: tuple[int, ...]


@dataclass
class Coverage:
    """All decisions, and what the user should be told of them."""

    decisions: list[Decision] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)


def cover(checkpoints: Sequence[Holder], recipe: Recipe, treatments: Treatments) -> Coverage:
    """Decide about every tensor of the inputs.

    Args:
        checkpoints: the inputs.
        recipe: what is asked for.
        treatments: what it says about each tensor.

    Raises:
        CoverageError: tensors that are missing, extra or of another shape or kind in some input.
        RecipeError: a glob that matches nothing, or nothing left to merge.
    """
    names = list(dict.fromkeys(name for c in checkpoints for name in c.tensors))
    _check_globs(names, recipe)
    result = Coverage()
    for name in names:
        treatment = treatments[name]
        concerned = {i: checkpoints[i] for i in treatment.inputs}
        holders = [i for i, checkpoint in concerned.items() if name in checkpoint.tensors]
        if treatment.action == "skip":
            result.skipped.append(name)
        elif treatment.action == "keep":
            _keep(name, holders, treatment.keep, checkpoints, result)
        elif len(holders) < len(concerned):
            _explain_absence(name, holders, concerned, result)
        else:
            _decide(name, concerned, recipe.dtype_code, result)
    _note_globs(result)
    _raise_problems(result, checkpoints)
    if not any(decision.action == "merge" for decision in result.decisions):
        raise RecipeError(
            "no floating-point tensor is left to merge", "Loosen --skip and --keep, or use `cp`."
        )
    return result


def _check_globs(names: Sequence[str], recipe: Recipe) -> None:
    wanted = [("--skip", glob) for glob in recipe.skip] + [("--keep", glob) for glob in recipe.keep]
    wanted += [
        (recipe.place(("rules", number, "tensors")) + ":", glob)
        for number, rule in enumerate(recipe.rules)
        for glob in rule.tensors
    ]
    for where, glob in wanted:
        if not any(fnmatchcase(name, glob) for name in names):
            raise RecipeError(
                f"{where} {glob!r} matches no tensor",
                "List the names with `streammerge inspect MODEL --verbose`.",
            )


def _keep(
    name: str,
    holders: Sequence[int],
    wanted: int | None,
    checkpoints: Sequence[Holder],
    result: Coverage,
) -> None:
    if wanted is not None and wanted not in holders:
        result.absent.append(f"{name}: to be kept from {checkpoints[wanted].label}, which lacks it")
        return
    source = holders[0] if wanted is None else wanted
    result.kept.append(name)
    result.decisions.append(Decision(checkpoints[source].tensors[name], "copy", (source,)))


def _decide(
    name: str, concerned: Mapping[int, Holder], dtype: str | None, result: Coverage
) -> None:
    checkpoints = list(concerned.values())
    infos = [checkpoint.tensors[name] for checkpoint in checkpoints]
    first, everyone = infos[0], tuple(concerned)
    kinds = {info.kind for info in infos}
    if len({info.shape for info in infos}) > 1:
        result.mismatched[name] = _by_value(name, checkpoints, lambda t: str(list(t.shape)))
    elif kinds == {"float"}:
        tensor = TensorInfo(name, dtype or first.dtype, first.shape)
        result.decisions.append(Decision(tensor, "merge", everyone))
    elif kinds == {"integer"} and len({info.dtype for info in infos}) == 1:
        result.decisions.append(Decision(first, "equal", everyone))
    else:
        result.mismatched[name] = _by_value(name, checkpoints, lambda t: t.dtype)


def _by_value(name: str, checkpoints: Sequence[Holder], value: Callable[[TensorInfo], str]) -> str:
    groups: dict[str, list[str]] = {}
    for checkpoint in checkpoints:
        groups.setdefault(value(checkpoint.tensors[name]), []).append(checkpoint.label)
    parts = [f"{shown} in {', '.join(labels)}" for shown, labels in groups.items()]
    return f"{name}: {'; '.join(parts)}"


def _explain_absence(
    name: str, holders: list[int], concerned: Mapping[int, Holder], result: Coverage
) -> None:
    lacking = [c.label for i, c in concerned.items() if i not in holders]
    tied_to = _tied_embedding(name, concerned[holders[0]], list(concerned.values()))
    if tied_to:
        result.notes.append(
            f"left out {name}: the configs tie it to {tied_to}, and {', '.join(lacking)} has it "
            "only there"
        )
    elif name.rpartition(".")[2] in _REBUILT_BUFFERS:
        having = ", ".join(concerned[i].label for i in holders)
        result.notes.append(
            f"left out {name}: a buffer that loaders rebuild; only {having} carries it"
        )
    else:
        result.absent.append(f"{name}: not in {', '.join(lacking)}")


def _tied_embedding(name: str, holder: Holder, checkpoints: Sequence[Holder]) -> str:
    """Return the embedding that `name` is an alias of by the configs; "" where it is none."""
    said = [_ties(c.config) for c in checkpoints]
    lacking = [ties for ties, c in zip(said, checkpoints, strict=True) if name not in c.tensors]
    if not name.endswith(_TIED_NAMES) or False in said or not all(lacking):
        return ""
    shape = holder.tensors[name].shape
    for candidate in checkpoints[0].tensors:
        if candidate != name and candidate.endswith(_EMBEDDINGS):
            infos = [c.tensors.get(candidate) for c in checkpoints]
            if all(info is not None and info.shape == shape for info in infos):
                return candidate
    return ""


def _ties(config: Mapping[str, Any]) -> bool | None:
    """Return `tie_word_embeddings` of a config or a config nested in it; None if it is silent."""
    nested = [value for value in config.values() if isinstance(value, dict)]
    for part in [config, *nested]:
        if isinstance(part.get("tie_word_embeddings"), bool):
            return bool(part["tie_word_embeddings"])
    return None


def _note_globs(result: Coverage) -> None:
    if result.skipped:
        result.notes.append(f"left out, as was asked for: {_some(result.skipped)}")
    if result.kept:
        result.notes.append(f"kept from one model, as was asked for: {_some(result.kept)}")


def _some(names: Sequence[str]) -> str:
    first = ", ".join(printable(name) for name in sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _raise_problems(result: Coverage, checkpoints: Sequence[Holder]) -> None:
    padded = padded_tensors(checkpoints) if result.mismatched else {}
    rows = [line for name, line in result.mismatched.items() if name in padded]
    others = [line for name, line in result.mismatched.items() if name not in padded]
    parts = [
        f"{len(cases)} {'tensor' if len(cases) == 1 else 'tensors'} {what}:\n{listing(cases)}"
        for cases, what in (
            (result.absent, "not in every model"),
            (rows, "with a row for each token, of which the models have different numbers"),
            (others, "of differing shape or kind"),
        )
        if cases
    ]
    if parts:
        raise CoverageError(
            "\n".join(parts),
            (_ROWS if rows else "") + "Merge checkpoints of one architecture; or leave tensors out "
            "with --skip GLOB, or take them from the first model that has them with --keep GLOB.",
        )
