"""What a plan does, in the words of its methods: for the table before a merge, and for the card."""

from __future__ import annotations

from collections import Counter

from streammerge.methods.parameters import Setting
from streammerge.plan import Plan, Step


def methods_in_words(plan: Plan) -> str:
    """Return the methods of a plan, such as "ties", or with counts if there are several."""
    steps = (plan.steps[tensor.step] for tensor in plan.tensors)
    counts = Counter(step.method for step in steps if step.action == "merge")
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{method} ({count:,} tensors)" for method, count in counts.most_common())


def step_in_words(step: Step) -> str:
    """Return method and parameters, such as "ties, density 0.5 0.3, normalize"."""
    words = [step.method]
    for name, value in step.parameters:
        if isinstance(value, tuple):
            words.append(f"{name} {' '.join(map(_shown, value))}")
        elif value is True:
            words.append(name)
        elif value is not False and value is not None:
            words.append(f"{name} {_shown(value)}")
    return ", ".join(words)


def part_in_words(plan: Plan, model: int) -> str:
    """Return the part that a model has in a merge: its share of an average, or its settings."""
    share = plan.inputs[model].coefficient
    if share is not None:
        return f"{share:.6g}"
    steps = [s for s in plan.steps if s.action == "merge" and model in s.sources]
    if steps and all(step.has_base and step.sources[-1] == model for step in steps):
        return "base model"
    found: dict[str, list[Setting]] = {}
    for step in steps:
        index = step.sources.index(model)
        for name, value in step.parameters:
            if isinstance(value, tuple) and index < len(value):
                found.setdefault(name, []).append(value[index])
    said = {name: _range(values) for name, values in found.items()}
    return ", ".join(f"{name} {values}" for name, values in said.items() if values)


def _range(values: list[Setting]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return _shown(low) if low == high else f"{_shown(low)} … {_shown(high)}"


def _shown(value: Setting) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
