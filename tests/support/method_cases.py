"""Cases for any registered merge method, made from its signature alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from streammerge.errors import RecipeError
from streammerge.methods import METHODS, Granularity, Method
from streammerge.methods.parameters import Parameter, Value, resolve
from tests.support.checkpoints import rng
from tests.support.methods import Settings, run_method

MATRIX = (19, 33)
SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (201,),
    MATRIX,
    (1, 99),
    (99, 1),
    (5, 6, 7),
    (4, 3, 5, 5),
)


@dataclass(frozen=True)
class Case:
    """One way to call a method.

    Attributes:
        method: its name.
        models: how many, without the base model.
        base: with a base model.
        kind: of parameters. defaults; numbers: every number and choice somewhere else than by
            default; switched: every true and false as well.
    """

    method: str
    models: int
    base: bool
    kind: str
    settings: Settings = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.method}-{self.models}-{'base' if self.base else 'alone'}-{self.kind}"

    def granularity(self, shape: tuple[int, ...]) -> Granularity:
        """What the method sees of a tensor at a time."""
        method = METHODS.get(self.method)
        each: list[Settings] = [{}] * self.models
        parameters = resolve(method.name, method.parameters, self.settings, each)
        return method.granularity(dict(parameters), shape)

    def run(self, tensors: list[Tensor], base: Tensor | None, **options: object) -> Tensor:
        """Merge by this method."""
        return run_method(self.method, tensors, base, self.settings, **options)  # type: ignore[arg-type]

    def inputs(
        self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 1
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return fine-tunes of one model, and that model if the case has one."""
        base = torch.randn(shape, generator=rng(seed), dtype=torch.float64) / 32
        tensors = [
            (base + torch.randn(shape, generator=rng(seed + i), dtype=torch.float64) / 200).to(
                dtype
            )
            for i in range(1, self.models + 1)
        ]
        return tensors, base.to(dtype) if self.base else None


def cases(models: tuple[int, ...] = (1, 2, 3)) -> Iterator[Case]:
    """Yield the cases of all methods: numbers of models, with and without base, two settings."""
    for name in METHODS:
        method = METHODS.get(name)
        least, most = method.models
        counts = sorted({least, *(n for n in models if n >= least and (most is None or n <= most))})
        for count in counts:
            for base in {"none": (False,), "required": (True,)}.get(method.base, (True, False)):
                for kind, settings in _settings(method, count).items():
                    yield Case(name, count, base, kind, settings)


def _settings(method: Method, models: int) -> dict[str, Settings]:
    needed = {p.name: _middle(p) for p in method.parameters.values() if p.required}
    switched = {p.name: _elsewhere(p) for p in method.parameters.values()}
    numbers = {k: v for k, v in switched.items() if not isinstance(v, bool)} | needed
    kinds: dict[str, Settings] = {}
    for kind, settings in {"defaults": needed, "numbers": numbers, "switched": switched}.items():
        try:
            method.check(dict(resolve(method.name, method.parameters, settings, [{}] * models)))
        except RecipeError:
            continue
        if settings not in kinds.values():
            kinds[kind] = settings
    return kinds


def _middle(parameter: Parameter) -> Value:
    low, high = parameter.bounds.low, parameter.bounds.high
    if parameter.kind is not float:
        return _elsewhere(parameter)
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low + 0.01 if math.isfinite(low) else 0.5


def _elsewhere(parameter: Parameter) -> Value:
    if parameter.choices:
        return next(c for c in reversed(parameter.choices) if c != parameter.default)
    if parameter.kind is bool:
        return not parameter.default
    if parameter.kind is int:
        return int(parameter.default or 0) + 1
    value = _middle(parameter)
    return value if value != parameter.default else value / 2
