"""Merge checkpoints of any size, at the speed of the disk, in the memory you allow."""

from streammerge.api import merge, plan_average, plan_merge
from streammerge.checks import Finding
from streammerge.errors import StreammergeError
from streammerge.methods import merge_method
from streammerge.modules import average, merge_modules, weighted_average
from streammerge.outputs import Pushed, WrittenShard
from streammerge.plan import Plan
from streammerge.push import push
from streammerge.recipe import Recipe, load_recipe
from streammerge.report import Result
from streammerge.verify import Verification, verify
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
