"""Merge checkpoints of any size, at the speed of the disk, in the memory you allow."""

from streammerge.api import Result, plan_average
from streammerge.checks import Finding
from streammerge.errors import StreammergeError
from streammerge.modules import average, merge_modules, weighted_average
from streammerge.outputs import Pushed, WrittenShard
from streammerge.plan import Plan
from streammerge.push import push
from streammerge.verify import Verification, verify
from streammerge.version import __version__

__all__ = [
    "Finding",
    "Plan",
    "Pushed",
    "Result",
    "StreammergeError",
    "Verification",
    "WrittenShard",
    "__version__",
    "average",
    "merge_modules",
    "plan_average",
    "push",
    "verify",
    "weighted_average",
]
