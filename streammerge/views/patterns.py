"""Rank and alpha of each module of an adapter, by its config's patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from streammerge.errors import CheckpointError, UnsupportedError, printable

_Pattern = tuple[re.Pattern[str], Any]
_LONGEST = 500
# The config is untrusted, and a hostile expression can run for years. With few repetitions and
# groups, and no repeated group, the time is bounded by a small power of the length.
_CHOICES = re.compile(r"[*+?{]"), re.compile(r"\(")
_MOST_CHOICES = 3
_NESTED = re.compile(r"\)[*+{]")


class Patterns:
    """`r`, `lora_alpha`, `rank_pattern` and `alpha_pattern` of an adapter_config.json.

    The keys of the patterns are regular expressions for the end of a module's name, of which the
    first that fits counts (`peft.utils.other.get_pattern_key`).

    Args:
        label: the adapter, for messages.
        config: its config.

    Raises:
        CheckpointError: a value that is no number, or a pattern that is no expression.
        UnsupportedError: an expression that could take forever.
    """

    def __init__(self, label: str, config: Mapping[str, Any]) -> None:
        self._label = label
        self._rank, self._alpha = config.get("r", 8), config.get("lora_alpha", 8)
        self._ranks = self._compile(config.get("rank_pattern"))
        self._alphas = self._compile(config.get("alpha_pattern"))

    def rank(self, module: str) -> int:
        """Return r of a module."""
        value = self._first(self._ranks, module, self._rank)
        if type(value) is not int or value < 1:
            raise self._wrong(f"the rank {printable(repr(value), 40)} of {printable(module)}")
        return value

    def alpha(self, module: str) -> float:
        """Return alpha of a module."""
        value = self._first(self._alphas, module, self._alpha)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(f"the alpha {printable(repr(value), 40)} of {printable(module)}")
        return float(value)

    def _compile(self, patterns: Any) -> list[_Pattern]:
        if not isinstance(patterns or {}, dict):
            raise self._wrong("rank_pattern or alpha_pattern")
        return [(self._expression(key), value) for key, value in (patterns or {}).items()]

    def _expression(self, key: str) -> re.Pattern[str]:
        many = any(len(kind.findall(key)) > _MOST_CHOICES for kind in _CHOICES)
        if many or len(key) > _LONGEST or _NESTED.search(key):
            raise UnsupportedError(
                f"{self._label} has the pattern {printable(key, 80)}, which is too involved to be "
                "evaluated safely",
                "Replace it in adapter_config.json by the names of the modules.",
            )
        try:
            return re.compile(rf"(.*\.)?({key})")
        except re.error as error:
            raise self._wrong(f"the pattern {printable(key, 80)} ({error})") from error

    def _first(self, patterns: Sequence[_Pattern], module: str, otherwise: Any) -> Any:
        if len(module) > _LONGEST:
            raise self._wrong(f"the name {printable(module, 80)} of {len(module):,} characters")
        return next((value for pattern, value in patterns if pattern.fullmatch(module)), otherwise)

    def _wrong(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._label}/adapter_config.json: {what} makes no sense", "Repair or download it."
        )
