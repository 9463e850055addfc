"""Merge checkpoints of any size, at the speed of the disk, in the memory you allow."""

from streammerge.api import Result, Shard, average, plan_average
from streammerge.errors import StreammergeError
from streammerge.plan import Plan
from streammerge.version import __version__

__all__ = ["Plan", "Result", "Shard", "StreammergeError", "__version__", "average", "plan_average"]
