"""Checkpoints of a training run: found, put in order by step, and chosen from.

Steps are read from names: `checkpoint-500` (Trainer), `step-1000`, `iter_0000500`,
`global_step1000`, `epoch=3-step=900`, `org/name@step1000-tokens4B`, or a number alone.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from streammerge.errors import RecipeError, listing

_STEP = re.compile(r"(?:checkpoint|ckpt|step|iter|iteration)[-_=]?(\d+)", re.I)
_EPOCH = re.compile(r"epoch[-_=]?(\d+)", re.I)
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of a run's checkpoints to take.

    Attributes:
        steps: "first:last" with both ends, either of which may be left open; or
            "first:last:stride", with every step that it names there to be taken.
        every: every n-th of those, counted back from the newest.
        last: the newest n of those.
    """

    steps: str | None = None
    every: int | None = None
    last: int | None = None

    def __bool__(self) -> bool:
        """Whether anything was said."""
        return (self.steps, self.every, self.last) != (None, None, None)


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the references that patterns stand for: those with wildcards are looked up.

    Raises:
        RecipeError: a pattern that matches nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        matches = [pattern]
        if _WILD.search(pattern) and not os.path.lexists(pattern):
            matches = sorted(glob.glob(pattern))
        if not matches:
            raise RecipeError(
                f"{pattern!r} matches nothing", "Paths count from where the command runs."
            )
        found += matches
    return list(dict.fromkeys(found))


def step_of(reference: str) -> int | None:
    """Return the training step that a reference names; None where it names none."""
    for name in reversed(re.split(r"[/\\]", reference.rstrip("/\\"))[-2:]):
        found = _STEP.findall(name) or _EPOCH.findall(name)
        if found or (name.isascii() and name.isdigit()):
            return int(found[-1] if found else name)
    return None


def in_order(references: Sequence[str]) -> list[str]:
    """Return checkpoints by step, oldest first; as given where none of them names a step.

    Raises:
        RecipeError: only some name a step, or two name the same.
    """
    if all(step_of(reference) is None for reference in references):
        return list(references)
    return [reference for _, reference in _dated(references)]


def select(references: Sequence[str], selection: Selection) -> list[str]:
    """Return the checkpoints that a selection takes, oldest first.

    Raises:
        RecipeError: their order cannot be told, or they are not there.
    """
    if not selection:
        return in_order(references)
    if any(count is not None and count < 1 for count in (selection.every, selection.last)):
        raise RecipeError("`every` and `last` are counts", "Give a number of 1 or more.")
    dated = _dated(references)
    if selection.steps is not None:
        dated = _between(dated, selection.steps)
    if selection.every is not None:
        dated = dated[:: -selection.every][::-1]
    if selection.last is not None:
        if selection.last > len(dated):
            raise RecipeError(
                f"the last {selection.last} are asked for, but there are {len(dated)} checkpoints",
                "Ask for fewer.",
            )
        dated = dated[-selection.last :]
    return [reference for _, reference in dated]


def _dated(references: Sequence[str]) -> list[tuple[int, str]]:
    steps = [(step_of(reference), reference) for reference in references]
    unknown = [reference for step, reference in steps if step is None]
    if unknown:
        raise RecipeError(
            f"the order of {len(unknown)} checkpoints cannot be told, as they name no training "
            f"step:\n{listing(unknown)}",
            "Leave them out, or name them like checkpoint-500.",
        )
    dated = sorted((step, reference) for step, reference in steps if step is not None)
    for (step, one), (same, other) in pairwise(dated):
        if step == same:
            raise RecipeError(f"{one} and {other} are both of step {step}", "Leave one out.")
    return dated


def _between(dated: Sequence[tuple[int, str]], wanted: str) -> list[tuple[int, str]]:
    first, last, stride = _parse_steps(wanted)
    there = {step for step, _ in dated}
    known = f"There are {', '.join(str(step) for step, _ in dated)}."
    if first is not None and last is not None and stride is not None:
        missing = [step for step in range(first, last + 1, stride) if step not in there]
        if missing:
            named = ", ".join(map(str, missing[:5])) + ("…" if missing[5:] else "")
            raise RecipeError(f"steps {wanted}: no checkpoint is of step {named}", known)
    chosen = [
        (step, reference)
        for step, reference in dated
        if (first is None or step >= first)
        and (last is None or step <= last)
        and (stride is None or (step - (first or 0)) % stride == 0)
    ]
    if not chosen:
        raise RecipeError(f"steps {wanted}: no checkpoint lies there", known)
    return chosen


def _parse_steps(wanted: str) -> tuple[int | None, int | None, int | None]:
    parts = [part.strip() for part in wanted.split(":")]
    good = len(parts) in (2, 3) and all(not part or part.isdecimal() for part in parts)
    first, last, stride = (int(p) if p else None for p in [*parts, ""][:3]) if good else (1, 0, 0)
    if stride == 0 or (first is not None and last is not None and first > last):
        raise RecipeError(
            f"steps {wanted!r} cannot be read",
            "Write first:last or first:last:stride, such as 1000:5000:500.",
        )
    return first, last, stride
