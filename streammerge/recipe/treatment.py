"""What a recipe says about one tensor: filters, gradients, slices, modules and rules resolved.

Precedence, highest first: rule, source (or model), slice, module, recipe. Where no filter matches,
the next has its say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from streammerge.recipe.layers import Layers, comes_before_layers, depth
from streammerge.recipe.settings import (
    Setting,
    Settings,
    Value,
    filters_in,
    first_value,
    has_gradient,
)

if TYPE_CHECKING:
    from streammerge.recipe.entries import Action, Rule
    from streammerge.recipe.recipe import Recipe
    from streammerge.recipe.sections import Section, Source

WITHOUT_EFFECT = frozenset({"int8_mask"})
"""Parameters of mergekit's that change the memory it takes and no result."""

_Scopes = list[Mapping[str, Setting]]


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is asked for one output tensor; settings as written, defaults not filled in.

    Attributes:
        action: "merge", "keep" (copied from one input) or "skip" (left out).
        method: name or alias, as written.
        parameters: settings for all models.
        each: for each entry of `Recipe.models`, the settings written there.
        inputs: indices into `Recipe.inputs` of those that take part.
        models: those of them that are listed as models, the base model perhaps among them.
        base: the base model among them, as an index into `Recipe.inputs`.
        keep: index of the input to copy from; None for the first that has the tensor.
    """

    action: Action
    method: str
    parameters: dict[str, Value]
    each: tuple[dict[str, Value], ...]
    inputs: tuple[int, ...]
    models: tuple[int, ...]
    base: int | None
    keep: int | None = None


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a tensor lies: its section, its depth, and its name in each source."""

    section: Section | None
    t: Fraction
    names: tuple[str, ...]


class Treatments:
    """The treatment of every tensor of a merge, by its name.

    Args:
        recipe: what is asked for.
        names: all tensors of all inputs; they say how many layers there are.
    """

    def __init__(self, recipe: Recipe, names: Iterable[str]) -> None:
        self._recipe, self._sections = recipe, recipe.sections
        self._layers = Layers(names, recipe.layers)
        self._weights = recipe.schedule_weights()
        written = list(all_settings(recipe))
        self._filters = sorted({text for settings in written for text in filters_in(settings)})
        self._by_layer = any(has_gradient(settings) for settings in written)
        self._known: dict[tuple[object, ...], Treatment] = {}

    def __getitem__(self, name: str) -> Treatment:
        """Return the treatment of a tensor of the output."""
        recipe = self._recipe
        action, rule = recipe.action(name)
        spot = self._find(name)
        # Treatments differ in nothing else, and a model has few different ones.
        found = [text in seen for seen in (name, *spot.names) for text in self._filters]
        key = (action, rule and id(rule), id(spot.section), spot.t, *found)
        if key not in self._known:
            self._known[key] = self._resolve(name, spot, action, rule)
        return self._known[key]

    def _find(self, name: str) -> _Spot:
        if not self._sections:
            return _Spot(None, self._layers.depth(name) if self._by_layer else Fraction(0), ())
        key = self._recipe.module_of(name)
        own = [section for section in self._sections if section.module == key]
        if not own:  # in no module, and so left out
            return _Spot(None, Fraction(0), ())
        layer = self._layers.find(name)
        for section in own:
            if section.layers is None:
                return _Spot(section, self._layers.depth(name), (name,) * len(section.sources))
            if layer is not None and layer.number in section.layers:
                index = layer.number - section.layers.start
                names = tuple(
                    layer.renumbered(source.layers[index]) if source and source.layers else name
                    for source in section.sources
                )
                return _Spot(section, depth(index, len(section.layers)), names)
        before = comes_before_layers(name, self._recipe.before_layers)
        section = own[0 if before else -1]
        return _Spot(section, Fraction(0), (name,) * len(section.sources))

    def _resolve(self, name: str, spot: _Spot, action: Action, rule: Rule | None) -> Treatment:
        recipe, section = self._recipe, spot.section
        shared: _Scopes = [*(section.settings if section else ()), recipe.parameters]
        each = self._settings_of_models(name, spot, shared)
        if rule is not None and rule.method is not None:
            shared, each = [], [{} for _ in each]
        first = _values([rule.parameters], name, spot.t) if rule else {}
        for number, values in enumerate(each):
            for key in first:
                values.pop(key, None)
            if rule is not None and rule.weights is not None:
                values["weight"] = rule.weights[number]
        return Treatment(
            action=action,
            method=(rule and rule.method) or recipe.method,
            parameters=_values(shared, name, spot.t) | first,
            each=tuple(each),
            inputs=section.inputs if section else tuple(range(len(recipe.inputs))),
            models=section.models if section else tuple(range(len(recipe.models))),
            base=section.base if section else recipe.base,
            keep=recipe.inputs.index(rule.model) if rule and rule.model else None,
        )

    def _settings_of_models(
        self, name: str, spot: _Spot, shared: _Scopes
    ) -> list[dict[str, Value]]:
        if spot.section is not None:
            return [
                _at_source(source, shared, own, name, spot.t)
                for source, own in zip(spot.section.sources, spot.names, strict=True)
            ]
        each = [_values([entry.parameters], name, spot.t) for entry in self._recipe.models]
        for values, weight in zip(each, self._weights, strict=False):
            values["weight"] = weight
        return each


def _values(scopes: _Scopes, name: str, t: Fraction) -> dict[str, Value]:
    keys = dict.fromkeys(key for scope in scopes for key in scope if key not in WITHOUT_EFFECT)
    found = ((key, first_value(scopes, key, name, t)) for key in keys)
    return {key: value for key, value in found if value is not None}


def _at_source(
    source: Source | None, shared: _Scopes, own: str, name: str, t: Fraction
) -> dict[str, Value]:
    """Return what is set for one source; its filters look at the tensor's name there."""
    if source is None:
        return {}
    here, everywhere = _values(shared, own, t), _values(shared, name, t)
    differing = {key: value for key, value in here.items() if everywhere.get(key) != value}
    return differing | _values([source.parameters], own, t)


def all_settings(recipe: Recipe) -> Iterator[Settings]:
    """Yield every mapping of settings that a recipe holds, as they are written."""
    yield recipe.parameters
    yield from (entry.parameters for entry in recipe.models)
    yield from (rule.parameters for rule in recipe.rules)
    for section in recipe.sections:
        yield from section.settings
        yield from (source.parameters for source in section.sources if source)
