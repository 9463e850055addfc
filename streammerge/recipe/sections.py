"""Slices and modules laid out: which layers of which models meet where.

A section is a slice of a module. Its sources take **positions**: position i of every section
together is one input of the merge, made of pieces of several models. So whatever comes after sees
inputs that all have the output's names. The base model, where every section has one, has a position
of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from streammerge.recipe.entries import DEFAULT_MODULE, ModelEntry, ModuleEntry, SliceEntry
from streammerge.recipe.settings import Settings


@dataclass(frozen=True, slots=True)
class Source:
    """Layers of a model, or the whole module of it where `layers` is None.

    Attributes:
        path: where it stands in the recipe; () for a base model that is not listed there.
    """

    model: str
    layers: range | None
    parameters: Settings
    path: tuple[str | int, ...]

    def __str__(self) -> str:
        chosen = f"[{self.layers.start}:{self.layers.stop}]" if self.layers else ""
        return self.model + chosen


@dataclass(frozen=True, slots=True)
class Section:
    """A slice of a module of the output.

    Attributes:
        module: key of the module.
        layers: numbers of its layers in the output; None for all of the module.
        sources: by position; None where this section has no source for one.
        base: position of the base model.
        settings: written at the slice and at the module, the former first.
        ends: whether it is the first and the last of its module.
    """

    module: str
    layers: range | None
    sources: tuple[Source | None, ...]
    base: int | None
    settings: tuple[Settings, ...]
    ends: tuple[bool, bool]

    @property
    def inputs(self) -> tuple[int, ...]:
        """The positions that have a source here."""
        return tuple(i for i, source in enumerate(self.sources) if source)

    @property
    def models(self) -> tuple[int, ...]:
        """Those of them that are listed in the recipe."""
        return tuple(i for i, source in enumerate(self.sources) if source and source.path)


def lay_out(
    slices: Sequence[SliceEntry], modules: Mapping[str, ModuleEntry], base_model: str | None
) -> tuple[Section, ...]:
    """Return the sections of a recipe with slices or modules; none for one without."""
    if slices:
        only = ModuleEntry(slices=tuple(slices))
        return tuple(_seated(list(_sections(DEFAULT_MODULE, only, (), base_model))))
    found: list[Section] = []
    for key in sorted(modules, key=lambda key: key == DEFAULT_MODULE):
        found += _sections(key, modules[key], ("modules", key), base_model)
    return tuple(_seated(found)) if found else ()


def labels(sections: Sequence[Section]) -> list[str]:
    """Return what each position is made of, such as "A[0:16] + B[8:24]"."""
    several = len({section.module for section in sections}) > 1
    shown: list[list[str]] = [[] for _ in sections[0].sources]
    for section in sections:
        for parts, source in zip(shown, section.sources, strict=True):
            if source is not None:
                parts.append(f"{source} ({section.module})" if several else str(source))
    return [" + ".join(parts) for parts in shown]


def _sections(
    key: str, module: ModuleEntry, path: tuple[str | int, ...], base_model: str | None
) -> Iterable[Section]:
    if module.models:
        sources = [
            Source(entry.model, None, entry.parameters, (*path, "models", i))
            for i, entry in enumerate(module.models)
        ]
        if base_model is not None and all(source.model != base_model for source in sources):
            sources.append(Source(base_model, None, {}, ()))
        base = _index(sources, base_model)
        yield Section(key, None, tuple(sources), base, (module.parameters,), (True, True))
    position, last = 0, len(module.slices) - 1
    for number, piece in enumerate(module.slices):
        place = (*path, "slices", number)
        sources = [
            Source(s.model, range(*s.layer_range), s.parameters, (*place, "sources", i))
            for i, s in enumerate(piece.sources)
        ]
        layers = range(position, position + len(sources[0].layers or ()))
        base = _index(sources, piece.base_model or base_model)
        settings = (piece.parameters, module.parameters)
        yield Section(key, layers, tuple(sources), base, settings, (number == 0, number == last))
        position = layers.stop


def _index(sources: Sequence[Source], model: str | None) -> int | None:
    return next((i for i, source in enumerate(sources) if source.model == model), None)


def _seated(sections: Sequence[Section]) -> Iterable[Section]:
    """Give every source its position; a base model that all sections have, always the same one."""
    count = max(len(section.sources) for section in sections)
    shared = sections[0].base if all(section.base is not None for section in sections) else None
    for section in sections:
        sources = list(section.sources)
        base = section.base
        if shared is not None and base is not None:
            moved = sources.pop(base)
            sources += [None] * (shared - len(sources))
            sources.insert(shared, moved)
            base = shared
        seats = (*sources, *[None] * (count - len(sources)))
        yield replace(section, sources=seats, base=base)


def merged_models(sections: Sequence[Section]) -> tuple[ModelEntry, ...]:
    """Return an entry for each position."""
    return tuple(ModelEntry(model=label) for label in labels(sections)) if sections else ()
