"""Slices and modules: which tensor of which checkpoint becomes which tensor of an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streammerge.errors import CoverageError, RecipeError, listing
from streammerge.formats import Checkpoint
from streammerge.recipe import Recipe
from streammerge.recipe.layers import Layer, Layers, comes_before_layers
from streammerge.recipe.sections import Section, Source
from streammerge.views.layercount import OutputLayer, with_layers
from streammerge.views.stacked import Stacked

Parts = dict[str, tuple[Checkpoint, str]]


def stack_up(recipe: Recipe, opened: Mapping[str, Checkpoint]) -> list[Stacked]:
    """Return the inputs of a recipe with slices or modules, one for each position.

    Raises:
        RecipeError: layers that a source does not have, or names that do not tell layers.
        CoverageError: tensors that no module holds.
    """
    keys = dict.fromkeys(section.module for section in recipe.sections)
    skipped = _check_modules(recipe, opened, list(keys))
    modules = [Module(recipe, key, opened) for key in keys]
    donor = opened[recipe.donor]
    config, notes = dict(donor.config), [note for c in opened.values() for note in c.notes]
    for module in modules:
        config, more = module.config(config, donor)
        notes += more + module.notes()
    stacks = []
    for position, label in enumerate(recipe.inputs):
        parts: Parts = {} if position else skipped
        for module in modules:
            parts |= module.parts(position)
        stacks.append(Stacked(label, parts, donor, config, () if position else notes))
    return stacks


def _check_modules(recipe: Recipe, opened: Mapping[str, Checkpoint], keys: Sequence[str]) -> Parts:
    """Return the tensors that no module holds, all of which are left out as asked for."""
    models = dict.fromkeys(s.model for section in recipe.sections for s in section.sources if s)
    names = {name: (opened[m], name) for m in models for name in opened[m].tensors}
    outside = {n: part for n, part in names.items() if recipe.module_of(n) is None}
    homeless = sorted(name for name in outside if recipe.action(name)[0] != "skip")
    if homeless:
        raise CoverageError(
            f"{len(homeless)} tensors belong to no module:\n{listing(homeless)}",
            "A module holds the tensors that have its name as a part of theirs, or those that its "
            "`tensors:` name; `default` holds all others. Leave tensors out with `skip:`.",
        )
    for key in keys:
        if all(recipe.module_of(name) != key for name in names):
            place = recipe.place(("modules", key))
            raise CoverageError(
                f"{place}: no tensor belongs to the module {key}",
                "Say which do with `tensors:`, such as `tensors: visual.*`.",
            )
    return outside


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of one model in one module: by layer, and outside layers."""

    checkpoint: Checkpoint
    layers: Mapping[int, Sequence[tuple[str, Layer]]]
    outside: Sequence[str]


class Module:
    """One module: its sections, and what the models have of it."""

    def __init__(self, recipe: Recipe, key: str, opened: Mapping[str, Checkpoint]) -> None:
        self._recipe, self._key = recipe, key
        self._sections = [section for section in recipe.sections if section.module == key]
        models = {s.model for section in self._sections for s in section.sources if s}
        names = {
            model: [name for name in opened[model].tensors if recipe.module_of(name) == key]
            for model in models
        }
        union = {name for own in names.values() for name in own}
        self._layers = Layers(union, recipe.layers)
        self._sliced = self._sections[0].layers is not None
        if self._sliced and len(self._layers.counts) != 1:
            raise self._ambiguous()
        self._contents = {
            model: self._sorted(opened[model], names[model]) for model in sorted(models)
        }

    def _ambiguous(self) -> RecipeError:
        stacks = [f"{stack}.* ({count})" for stack, count in sorted(self._layers.counts.items())]
        if not stacks:
            return RecipeError(
                "no tensor's name says which layer it belongs to, so there is nothing to slice",
                'Layers are numbers between dots, as in "model.layers.12.mlp"; see `layers:`.',
            )
        return RecipeError(
            f"the names show several stacks of layers, so it is not clear which is sliced:\n"
            f"{listing(stacks)}",
            f"Write `layers: {stacks[0].partition(' ')[0]}`, or slice each stack in a module.",
        )

    def _sorted(self, checkpoint: Checkpoint, names: Sequence[str]) -> Contents:
        layers: dict[int, list[tuple[str, Layer]]] = {}
        outside = []
        for name in names:
            layer = self._layers.find(name) if self._sliced else None
            if layer is None:
                outside.append(name)
            else:
                layers.setdefault(layer.number, []).append((name, layer))
        return Contents(checkpoint, layers, outside)

    def parts(self, position: int) -> Parts:
        """Return the tensors of one position."""
        found: Parts = {}
        for section in self._sections:
            source = section.sources[position]
            if source is None:
                continue
            contents = self._contents[source.model]
            for name in contents.outside:
                if section.ends[0 if self._before(name) else 1]:
                    found[name] = (contents.checkpoint, name)
            for number, taken in zip(section.layers or (), source.layers or (), strict=True):
                if taken not in contents.layers:
                    raise self._too_few(source, contents)
                for name, layer in contents.layers[taken]:
                    found[layer.renumbered(number)] = (contents.checkpoint, name)
        return found

    def _before(self, name: str) -> bool:
        return comes_before_layers(name, self._recipe.before_layers)

    def _too_few(self, source: Source, contents: Contents) -> RecipeError:
        place = self._recipe.place((*source.path, "layer_range"))
        return RecipeError(
            f"{place}: {source} goes beyond the {max(contents.layers, default=-1) + 1} layers of "
            f"{source.model}",
            "layer_range begins with 0 and ends before its second number.",
        )

    def config(self, config: dict[str, Any], donor: Checkpoint) -> tuple[dict[str, Any], list[str]]:
        """Return a config with this module's number of layers, and notes about it."""
        if not self._sliced:
            return config, []
        (stack,) = self._layers.counts
        before = Layers(donor.tensors, self._recipe.layers).counts.get(stack, 0)
        layers = [
            OutputLayer(self._contents[source.model].checkpoint.config, number)
            for section in self._sections
            for source in [next(s for s in section.sources if s)]
            for number in source.layers or ()
        ]
        return with_layers(config, stack, before, layers)

    def notes(self) -> list[str]:
        """Say where tensors outside layers come from, where that is a choice."""
        first, last = (_models_of(self._sections[end]) for end in (0, -1))
        if not self._sliced or first == last:
            return []
        outside = sorted(
            {name for contents in self._contents.values() for name in contents.outside}
        )
        before = [name for name in outside if self._before(name)]
        behind = [name for name in outside if not self._before(name)]
        return [
            f"outside layers, from {' and '.join(models)} of the {which} slice: {', '.join(names)}"
            for which, models, names in (("first", first, before), ("last", last, behind))
            if names
        ]


def _models_of(section: Section) -> list[str]:
    return [source.model for source in section.sources if source]
