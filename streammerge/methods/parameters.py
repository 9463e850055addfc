"""A method's parameters, read from its signature: the one source of recipe keys, checks and docs.

A keyword-only argument of a method is a parameter of the recipe. `float`, `int`, `bool` and
`Literal` say what it takes; `Annotated` adds a range, aliases, or that each model has its own.
"""

from __future__ import annotations

import difflib
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from streammerge.errors import ParameterError

Value = float | int | bool | str
Setting = Value | None
Resolved = tuple[tuple[str, Setting | tuple[Setting, ...]], ...]
"""Every parameter of a method with its value, or with one for each model; hashable."""
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a number; open ends are excluded."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def hold(self, value: float) -> bool:
        """Whether a number lies within."""
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return ""
        if math.isinf(self.high):
            return f"{'>' if self.open_low else '≥'} {self.low:g}"
        if math.isinf(self.low):
            return f"{'<' if self.open_high else '≤'} {self.high:g}"
        left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
        return f"in {left}{self.low:g}, {self.high:g}{right}"


@dataclass(frozen=True, slots=True)
class PerModel:
    """Marks an argument that gets one value for each model, and gives the default for all."""

    default: Any = _REQUIRED


@dataclass(frozen=True, slots=True)
class Alias:
    """Other keys under which a recipe may set an argument."""

    names: tuple[str, ...]


Weight = Annotated[Sequence[float], PerModel(1.0)]
"""The weight of each model; any finite number."""
Density = Annotated[Sequence[float], PerModel(1.0), Bounds(0, 1)]
"""The share of each task vector's elements to keep."""
Lambda = Annotated[float, Alias(("lambda",))]
"""What the merged task vector is multiplied by."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: the argument, and the key in recipes.
        aliases: other keys.
        kind: float, int, bool or str.
        choices: the allowed texts, where there are only some.
        bounds: of a number.
        each: every model has its own value.
        default: `inspect.Parameter.empty` where a recipe must say.
    """

    name: str
    aliases: tuple[str, ...]
    kind: type
    choices: tuple[str, ...]
    bounds: Bounds
    each: bool
    default: Any
    optional: bool

    @property
    def required(self) -> bool:
        """Whether a recipe must set it."""
        return self.default is _REQUIRED

    def check(self, value: Setting, model: int | None) -> Setting:
        """Return a value in its proper type.

        Args:
            value: as a recipe has it.
            model: number of the model that sets it; None where it is set for all.

        Raises:
            ParameterError: it is of another type or out of range.
        """
        if value is None and self.optional:
            return None
        if self.kind is float and isinstance(value, str):
            value = _number(value)
        if self.kind is float and type(value) is int and abs(value) <= 2**53:
            value = float(value)  # 1 and 1.0 make the same plan
        if self.kind is bool and value in (0, 1):
            value = bool(value)  # recipes that programs wrote say `normalize: 1.0`
        wanted = (int, float) if self.kind is float else (self.kind,)
        good = isinstance(value, wanted) and isinstance(value, bool) == (self.kind is bool)
        if good and self.kind in (int, float):
            good = math.isfinite(float(value or 0)) and self.bounds.hold(float(value or 0))
        if good and self.choices:
            good = value in self.choices
        if not good:
            wanted_here = f"Give {self.describe()}."
            raise ParameterError(
                f"{self.name} is {value!r}, which it cannot be", wanted_here, self.name, model
            )
        return value

    def describe(self) -> str:
        """Return what it takes, in words."""
        if self.choices:
            return " or ".join(self.choices)
        word = {float: "a number", int: "an integer", bool: "true or false", str: "a text"}
        return f"{word[self.kind]} {self.bounds}".strip()


def _number(text: str) -> float | str:
    """Return the number in a text such as "1/3"; the text where there is none."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        return text


def read_parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the keyword-only arguments of a function as parameters."""
    # Positional arguments are tensors, whose types are only imported by type checkers.
    unseen: dict[str, Any] = {"Tensor": object, "Flat": object, "Workspace": object}
    hints = get_type_hints(function, localns=unseen, include_extras=True)
    found = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is argument.KEYWORD_ONLY:
            found[name] = _parameter(name, hints[name], argument.default)
    return found


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    per_model = next((mark for mark in marks if isinstance(mark, PerModel)), None)
    if per_model is not None:
        (hint,), default = get_args(hint), per_model.default
    optional = get_origin(hint) is types.UnionType and type(None) in get_args(hint)
    if optional:
        hint = next(part for part in get_args(hint) if part is not type(None))
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    if kind not in (float, int, bool, str):
        raise TypeError(f"a method's parameter {name!r} cannot be a {hint}")
    return Parameter(
        name=name,
        aliases=next((mark.names for mark in marks if isinstance(mark, Alias)), ()),
        kind=kind,
        choices=choices,
        bounds=next((mark for mark in marks if isinstance(mark, Bounds)), Bounds()),
        each=per_model is not None,
        default=default,
        optional=optional,
    )


def resolve(
    method: str,
    parameters: Mapping[str, Parameter],
    settings: Mapping[str, Value],
    each: Sequence[Mapping[str, Value]],
) -> Resolved:
    """Return every parameter's value from what a recipe sets, defaults filled in.

    Args:
        method: its name, for messages.
        parameters: of the method.
        settings: written for all models.
        each: written at each model, in order.

    Raises:
        ParameterError: an unknown key, a value out of range, or one that is missing.
    """
    common = _by_name(method, parameters, settings, None)
    own = [_by_name(method, parameters, model, index) for index, model in enumerate(each)]
    resolved: list[tuple[str, Setting | tuple[Setting, ...]]] = []
    for name, parameter in parameters.items():
        if parameter.each:
            values = [model.get(name, common.get(name, parameter.default)) for model in own]
            if any(value is _REQUIRED for value in values):
                raise ParameterError(
                    f"{method} needs {name} for every model",
                    f"Write {name} below `parameters` of each model, or once for all.",
                    name,
                )
            checked = tuple(
                parameter.check(value, index if name in own[index] else None)
                for index, value in enumerate(values)
            )
            resolved.append((name, checked))
            continue
        for index, model in enumerate(own):
            if name in model:
                raise ParameterError(
                    f"{name} of {method} is one for all models, but a model sets it",
                    f"Move {name} to the recipe's `parameters`.",
                    name,
                    index,
                )
        value = common.get(name, parameter.default)
        if value is _REQUIRED:
            raise ParameterError(
                f"{method} needs {name}", f"Add {name} to the recipe's `parameters`.", name
            )
        resolved.append((name, parameter.check(value, None)))
    return tuple(resolved)


def _by_name(
    method: str,
    parameters: Mapping[str, Parameter],
    settings: Mapping[str, Value],
    model: int | None,
) -> dict[str, Value]:
    """Return settings under the parameters' own names instead of aliases."""
    keys = {k: p.name for p in parameters.values() for k in (p.name, *p.aliases)}
    for key in settings:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(keys) or 'none'}."
            raise ParameterError(f"{method} has no parameter {key!r}", hint, key, model)
    return {keys[key]: value for key, value in settings.items()}
