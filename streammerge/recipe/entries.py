"""The parts of a recipe: models, slices, modules, rules."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal, Self

from pydantic import Field, model_validator

from streammerge.recipe.settings import Data, Many, Settings, Value

Action = Literal["merge", "keep", "skip"]


class ModelEntry(Data):
    """A model, by its reference as written (`path`, `org/name@revision`, `…+adapter`)."""

    model: str = Field(min_length=1)
    parameters: Settings = Field(default_factory=dict)


class SourceEntry(Data):
    """Some layers of a model; `layer_range` ends before its second number."""

    model: str = Field(min_length=1)
    layer_range: Many[int]
    parameters: Settings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if len(self.layer_range) != 2 or not 0 <= self.layer_range[0] < self.layer_range[1]:
            raise ValueError("layer_range is [first, end] with 0 ≤ first < end")
        return self


class SliceEntry(Data):
    """Layers of the output, merged from equally many layers of each source."""

    sources: Many[SourceEntry] = Field(min_length=1)
    base_model: str | None = None
    parameters: Settings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _are_alike(self) -> Self:
        if len({end - begin for begin, end in (s.layer_range for s in self.sources)}) > 1:
            raise ValueError("the sources of a slice have equally many layers")
        if len({source.model for source in self.sources}) < len(self.sources):
            raise ValueError("a slice has each model once")
        return self


class ModuleEntry(Data):
    """A part of the model with models or slices of its own.

    Attributes:
        tensors: globs of its tensors; none for those with the module's name as a part of theirs.
    """

    tensors: Many[str] = ()
    models: Many[ModelEntry] = ()
    slices: Many[SliceEntry] = ()
    parameters: Settings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_kind_of_input(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError("a module has either models or slices")
        return self

    def holds(self, key: str, name: str) -> bool:
        """Whether a tensor belongs to this module, which stands under `key`."""
        if self.tensors:
            return any(fnmatchcase(name, glob) for glob in self.tensors)
        return key == DEFAULT_MODULE or f".{key}." in f".{name}."


DEFAULT_MODULE = "default"
"""The module of all tensors that no other one holds."""


class Rule(Data):
    """Other treatment for some tensors.

    Attributes:
        tensors: globs of their names.
        action: "keep" takes them from `model`, or from the first input that has them.
        method: instead of the recipe's; then the recipe's parameters do not count for them.
        parameters: before all others.
        weights: one for each model, instead of those written there.
        model: where "keep" takes them from.
    """

    tensors: Many[str] = Field(min_length=1)
    action: Action = "merge"
    method: str | None = None
    parameters: Settings = Field(default_factory=dict)
    weights: Many[Value] | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _fits_its_action(self) -> Self:
        said = self.method is not None or self.parameters or self.weights is not None
        if self.action != "merge" and said:
            raise ValueError(f"action {self.action} goes with no method, parameters or weights")
        if self.action != "keep" and self.model is not None:
            raise ValueError("`model` goes with `action: keep`")
        if self.action == "merge" and not said:
            raise ValueError("a rule has a method, parameters, weights or an action")
        return self

    def applies(self, name: str) -> bool:
        """Whether the rule is meant for this tensor."""
        return any(fnmatchcase(name, glob) for glob in self.tensors)
