"""Every error a user can meet, as one tree.

    StreammergeError
    ├── CheckpointError           an input is not a checkpoint that can be merged
    │   ├── HeaderError           a safetensors header breaks the format
    │   ├── IndexFileError        a shard index breaks the format or disagrees with its shards
    │   └── UnsupportedError      a known kind of file that is refused on purpose (pickle, GGUF, …)
    ├── RecipeError               what was asked for makes no sense by itself (weights, globs)
    │   └── ParameterError        a method does not take a parameter, or not such a value
    ├── CoverageError             the inputs' tensors do not match each other
    ├── UnrelatedError            the inputs look unrelated, and that was to be an error
    ├── PlanError                 the merge cannot be carried out here
    │   ├── BudgetError           the memory budget is too small
    │   └── DiskSpaceError        the output does not fit on the disk
    ├── OutputError               the output cannot be used or written
    │   └── ManifestError         an output has no streammerge.json that can be read
    ├── HubError                  the Hub refuses, or cannot be reached
    └── MergeError                found while merging
        ├── TensorsDifferError    integer or bool tensors that should be equal are not
        ├── NonFiniteError        NaN or Inf in an input, or made by the merge
        └── ReadError             an input could not be read to the end

A message says what is wrong and where (tensor, file, model); `remedy` says what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable


class StreammergeError(Exception):
    """Base of all errors that streammerge raises on purpose.

    Args:
        message: what is wrong and where.
        remedy: what the user can do; shown on a line of its own.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n{self.remedy}" if self.remedy else self.message


class CheckpointError(StreammergeError):
    """An input is not a checkpoint that can be merged."""


class HeaderError(CheckpointError):
    """A safetensors header breaks the format."""


class IndexFileError(CheckpointError):
    """A shard index breaks the format or disagrees with its shards."""


class UnsupportedError(CheckpointError):
    """A known kind of file that is refused on purpose."""


class RecipeError(StreammergeError):
    """What was asked for makes no sense by itself."""


class ParameterError(RecipeError):
    """A method does not take a parameter, or not such a value.

    Args:
        message, remedy: as for all errors.
        key: the parameter.
        model: number of the model it is set for; None where it is set for all.
    """

    def __init__(
        self, message: str, remedy: str = "", key: str = "", model: int | None = None
    ) -> None:
        super().__init__(message, remedy)
        self.key, self.model = key, model


class CoverageError(StreammergeError):
    """The inputs' tensors do not match each other."""


class UnrelatedError(StreammergeError):
    """The inputs look unrelated, and that was to be an error."""


class PlanError(StreammergeError):
    """The merge cannot be carried out here."""


class BudgetError(PlanError):
    """The memory budget is too small for the pipeline."""


class DiskSpaceError(PlanError):
    """The output does not fit on the disk."""


class OutputError(StreammergeError):
    """The output cannot be used or written."""


class ManifestError(OutputError):
    """An output has no streammerge.json that can be read, so nothing can be verified."""


class HubError(StreammergeError):
    """The Hub refuses what was asked of it, or cannot be reached."""


class MergeError(StreammergeError):
    """Something found while merging."""


class TensorsDifferError(MergeError):
    """Integer or bool tensors that should be equal are not."""


class NonFiniteError(MergeError):
    """NaN or Inf in an input, or made by the merge."""


class ReadError(MergeError):
    """An input could not be read to the end."""


def listing(items: Iterable[str], limit: int = 10) -> str:
    """Return the items as indented lines: the first `limit`, then how many more there are."""
    lines = list(items)
    shown = "\n".join(f"  {printable(line)}" for line in lines[:limit])
    rest = len(lines) - limit
    return f"{shown}\n  … and {rest} more" if rest > 0 else shown


def is_unicode(text: str) -> bool:
    """Whether text can be written to JSON: a path with arbitrary bytes has surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, limit: int = 300) -> str:
    """Return text from an untrusted file so that it is safe and short enough for a terminal."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return clean if len(text) <= limit else clean[:limit] + "…"
