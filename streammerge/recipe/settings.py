"""What a recipe says of a parameter: one value, a gradient over layers, or values by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from streammerge.errors import RecipeError, printable

T = TypeVar("T")
_KINDS = ("float", "int", "bool", "str")  # alternatives of a value, which pydantic names


def as_tuple(value: object) -> object:
    """Return a list, which is what JSON and YAML have, as the tuple that strict models ask for."""
    return tuple(value) if isinstance(value, list) else value


class Data(BaseModel):
    """Base of all parts of a recipe: read-only, no unknown keys, no silent conversions."""

    # Only what a recipe uses is built, and that once: a start would take 0.05 s more.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Return one of these.

        Raises:
            RecipeError: with the first field that makes no sense.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            message = str(first["msg"]).removeprefix("Value error, ")
            where = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
            wrong = f"{where} is {printable(repr(first['input']), 60)}: " if where else ""
            raise RecipeError(wrong + message) from None


Many = Annotated[tuple[T, ...], BeforeValidator(as_tuple)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = Finite | int | bool | str
Gradient = Annotated[tuple[Value, ...], BeforeValidator(as_tuple), Field(min_length=1)]


class Conditional(Data):
    """A value for the tensors whose name contains `filter`; for all where it is None or "*"."""

    filter: str | None = None
    value: Value | Gradient

    def applies(self, name: str) -> bool:
        """Whether the value is meant for this tensor."""
        return self.filter is None or self.filter == "*" or self.filter in name


Cases = Annotated[tuple[Conditional, ...], BeforeValidator(as_tuple), Field(min_length=1)]
Setting = Value | Gradient | Cases
Settings = dict[str, Setting]


def evaluate(setting: Setting, name: str, t: Fraction) -> Value | None:
    """Return what a setting says for one tensor; None where no filter matches.

    Args:
        setting: as written.
        name: of the tensor.
        t: how deep in the model its layer lies, from 0 to 1.
    """
    if not isinstance(setting, tuple):
        return setting
    cases = [case for case in setting if isinstance(case, Conditional)]
    if not cases:
        return interpolate([v for v in setting if not isinstance(v, Conditional)], t)
    return next((evaluate(case.value, name, t) for case in cases if case.applies(name)), None)


def interpolate(values: list[Value], t: Fraction) -> Value:
    """Return the gradient's value at t: piecewise linear; words and truth values do not mix.

    Decimals count as written and the result is rounded once, so that the middle of 0.1 and 0.3 is
    0.2.
    """
    position = t * (len(values) - 1)
    left = int(position)
    numbers = [value for value in values if _is_number(value)]
    if len(numbers) < len(values):
        return values[left]
    right = min(left + 1, len(values) - 1)
    begin, end = (Fraction(repr(values[i])) for i in (left, right))
    result = begin + (end - begin) * (position - left)
    whole = result.denominator == 1 and all(isinstance(value, int) for value in values)
    return int(result) if whole else float(result)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def first_value(
    scopes: list[Mapping[str, Setting]], key: str, name: str, t: Fraction
) -> Value | None:
    """Return what the first scope that has something to say says; None where none does."""
    for scope in scopes:
        if key in scope:
            value = evaluate(scope[key], name, t)
            if value is not None:
                return value
    return None


def filters_in(settings: Mapping[str, Setting]) -> Iterator[str]:
    """Yield every text that the settings look for in names."""
    for setting in settings.values():
        for case in setting if isinstance(setting, tuple) else ():
            if isinstance(case, Conditional) and case.filter not in (None, "*"):
                yield str(case.filter)


def has_gradient(settings: Mapping[str, Setting]) -> bool:
    """Whether some value depends on the layer."""
    return any(
        isinstance(case.value, tuple) if isinstance(case, Conditional) else True
        for setting in settings.values()
        if isinstance(setting, tuple)
        for case in setting
    )
