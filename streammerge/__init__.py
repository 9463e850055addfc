"""Merge checkpoints of any size, at the speed of the disk, in the memory you allow."""

from importlib.metadata import version as _version

__version__ = _version("streammerge")
