"""Merge checkpoints of any size, at the speed of the disk, in the memory you allow.

Each public name is imported when it is first asked for (PEP 562), so that a command loads what it
needs and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streammerge.api import merge, plan_average, plan_merge
    from streammerge.checks import Finding
    from streammerge.errors import StreammergeError
    from streammerge.methods import merge_method
    from streammerge.modules import average, merge_modules, weighted_average
    from streammerge.outputs import Pushed, WrittenShard
    from streammerge.plan import Plan
    from streammerge.pushing import push
    from streammerge.recipe import Recipe, load_recipe
    from streammerge.report import Result
    from streammerge.verifying import Verification, verify
    from streammerge.version import __version__

__all__ = [
    "Finding",
    "Plan",
    "Pushed",
    "Recipe",
    "Result",
    "StreammergeError",
    "Verification",
    "WrittenShard",
    "__version__",
    "average",
    "load_recipe",
    "merge",
    "merge_method",
    "merge_modules",
    "plan_average",
    "plan_merge",
    "push",
    "verify",
    "weighted_average",
]

_HOMES = {
    "Finding": "checks",
    "Plan": "plan",
    "Pushed": "outputs",
    "Recipe": "recipe",
    "Result": "report",
    "StreammergeError": "errors",
    "Verification": "verifying",
    "WrittenShard": "outputs",
    "__version__": "version",
    "average": "modules",
    "load_recipe": "recipe",
    "merge": "api",
    "merge_method": "methods",
    "merge_modules": "modules",
    "plan_average": "api",
    "plan_merge": "api",
    "push": "pushing",
    "verify": "verifying",
    "weighted_average": "modules",
}

if not TYPE_CHECKING:  # a type checker would take any name for known

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value  # asked for once
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
