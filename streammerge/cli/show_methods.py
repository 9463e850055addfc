"""The merge methods as text or JSON; everything is read from the functions themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from streammerge.cli.console import grid, open_console, print_json
from streammerge.methods import METHODS, Method
from streammerge.methods.parameters import Parameter


def methods() -> None:
    """Print every method with what it does."""
    table = grid("method", "what it does", "base model", "paper")
    for name in METHODS:
        method = METHODS.get(name)
        paper = f"arXiv:{method.paper}" if method.paper else ""
        table.add_row(f"[bold]{name}[/]", escape(method.summary), _base(method), paper)
    console = open_console()
    console.print(table)
    console.print("\n`streammerge methods NAME` explains one.")


def method(found: Method) -> None:
    """Explain a method."""
    console = open_console()
    console.print(f"[bold]{found.name}[/]  {escape(found.description)}\n")
    if found.parameters:
        table = grid("parameter", "takes", "default", "also called")
        for parameter in found.parameters.values():
            each = ", for each model" if parameter.each else ""
            table.add_row(
                f"[bold]{parameter.name}[/]",
                escape(parameter.describe() + each),
                default(parameter),
                ", ".join(parameter.aliases),
            )
        console.print(table)
        console.print()
    for line in _facts(found):
        console.print(escape(line))


def _facts(found: Method) -> list[str]:
    passes = found.passes
    reads = f"its tensors {passes + 1} times at most" if passes else "its tensors once"
    facts = [f"models: {count(found)}", f"base model: {_base(found)}", f"reads {reads}"]
    facts += [f"also called: {', '.join(found.aliases)}"] if found.aliases else []
    return facts + ([f"paper: https://arxiv.org/abs/{found.paper}"] if found.paper else [])


def count(found: Method) -> str:
    """Return how many models a method takes besides the base model."""
    least, most = found.models
    if most is None:
        return f"{least} or more"
    return f"{least}" if least == most else f"{least} to {most}"


def default(parameter: Parameter) -> str:
    """Return a parameter's default, as it is written in a recipe."""
    if parameter.required:
        return "must be given"
    value = parameter.default
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _base(found: Method) -> str:
    return {"none": "no", "optional": "if there is one", "required": "needed"}[found.base]


def methods_as_json(names: Sequence[str]) -> None:
    """Print methods as one JSON object."""
    print_json({name: _as_json(METHODS.get(name)) for name in names})


def _as_json(found: Method) -> dict[str, Any]:
    return {
        "summary": found.summary,
        "description": found.description,
        "aliases": list(found.aliases),
        "base_model": found.base,
        "models": {"least": found.models[0], "most": found.models[1]},
        "passes": found.passes,
        "paper": found.paper,
        "parameters": {
            parameter.name: {
                "takes": parameter.describe(),
                "each_model": parameter.each,
                "required": parameter.required,
                "default": None if parameter.required else parameter.default,
                "aliases": list(parameter.aliases),
            }
            for parameter in found.parameters.values()
        },
    }
