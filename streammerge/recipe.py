"""What the user asked for, checked as far as that goes without looking at a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict

from streammerge.errors import RecipeError
from streammerge.methods.parameters import Value
from streammerge.methods.weights import Weights, exact_weights
from streammerge.tensors import FLOAT_CODES

DtypeName = Literal["auto", "float32", "float16", "bfloat16"]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Globs = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


@dataclass(frozen=True, slots=True)
class Treatment:
    """What a recipe says of one tensor, as it is written: the method fills in its defaults.

    Attributes:
        method: name or alias.
        parameters: settings for all models.
        each: settings of each model.
    """

    method: str
    parameters: Mapping[str, Value]
    each: tuple[Mapping[str, Value], ...]


class Recipe(BaseModel):
    """One merge.

    Attributes:
        models: references of the inputs, in order; the first gives dtypes and side files.
        weights: one for each model, as written; None for equal ones.
        dtype: dtype of merged tensors; "auto" keeps the first model's, tensor by tensor.
        skip: globs of tensor names to leave out.
        keep: globs of tensor names to take from the first model that has them.
        side_files_from: the model whose config and tokenizer are taken; None for the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    models: tuple[str, ...]
    weights: tuple[float | str, ...] | None = None
    dtype: DtypeName = "auto"
    skip: Globs = ()
    keep: Globs = ()
    side_files_from: str | None = None

    compute_dtype: Literal["auto", "float64"] = "auto"

    @property
    def base(self) -> int | None:
        return None

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.models

    def treatment(self, name: str) -> Treatment:
        """Return what is said of a tensor."""
        weights = self.weights or [1.0] * len(self.models)
        return Treatment("average", {}, tuple({"weight": weight} for weight in weights))

    @property
    def dtype_code(self) -> str | None:
        """The safetensors code of `dtype`; None for "auto"."""
        return FLOAT_CODES.get(self.dtype)

    def command(self, out: str) -> list[str]:
        """Return the command line that asks for the same."""
        words = ["streammerge", "average", *self.models, "-o", out]
        words += [word for weight in self.weights or () for word in ("-w", str(weight))]
        words += ["--dtype", self.dtype] if self.dtype != "auto" else []
        words += [word for glob in self.skip for word in ("--skip", glob)]
        words += [word for glob in self.keep for word in ("--keep", glob)]
        chosen = self.side_files_from
        return words + (["--side-files-from", chosen] if chosen is not None else [])

    def exact_weights(self) -> Weights:
        """Return the weights as integers; see `weights.exact_weights`."""
        return exact_weights(self.weights or [1] * len(self.models))


def average_recipe(
    models: Sequence[str],
    weights: Sequence[float | str] | None,
    dtype: str,
    skip: Sequence[str],
    keep: Sequence[str],
    side_files_from: str | None,
) -> Recipe:
    """Return the recipe of a weighted average.

    Raises:
        RecipeError: too few models, or weights or a dtype that make no sense.
    """
    if len(models) < 2:
        raise RecipeError(
            f"an average needs at least two models, not {len(models)}",
            "To copy a single checkpoint, use `cp -r` or `hf download`.",
        )
    if weights is not None and len(weights) != len(models):
        count = "1 weight" if len(weights) == 1 else f"{len(weights)} weights"
        raise RecipeError(
            f"{count} for {len(models)} models",
            "Give --weight once for each model, in the same order, or not at all.",
        )
    recipe = Recipe(
        models=tuple(models),
        weights=tuple(weights) if weights else None,
        dtype=_dtype_name(dtype),
        skip=tuple(skip),
        keep=tuple(keep),
        side_files_from=side_files_from,
    )
    recipe.exact_weights()
    return recipe


def _dtype_name(name: str) -> DtypeName:
    for known in get_args(DtypeName):
        if name == known:
            return cast(DtypeName, known)
    known_names = ", ".join(get_args(DtypeName))
    raise RecipeError(f"{name!r} is no output dtype", f"Choose one of {known_names}.")
