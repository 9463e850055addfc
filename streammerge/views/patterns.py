"""Rank and alpha of each module of an adapter, by its config's patterns."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from typing import Any

from streammerge.errors import CheckpointError, UnsupportedError, printable

# The config is untrusted, and a hostile expression can run for years. With few repetitions and
# groups, and no repeated group, the time is bounded by a small power of the name's length; and the
# time for all of them together is watched.
_CHOICES = re.compile(r"[*+?{]"), re.compile(r"\(")
_MOST_CHOICES = 3
_NESTED = re.compile(r"\)[*+{]")
_LONGEST = 200
_MOST_EXPRESSIONS = 1_000
_SECONDS = 1.0
_NAME = re.compile(r"[\w.-]+")


class _Rules:
    """Patterns in their order: names by their text, and expressions.

    A dot in a name stands for a dot here, and for any character in peft.
    """

    def __init__(self) -> None:
        self.names: dict[str, tuple[int, Any]] = {}
        self.expressions: list[tuple[int, re.Pattern[str], Any]] = []


class Patterns:
    """`r`, `lora_alpha`, `rank_pattern` and `alpha_pattern` of an adapter_config.json.

    The keys of the patterns are regular expressions for the end of a module's name, of which the
    first that fits counts (`peft.utils.other.get_pattern_key`).

    Args:
        label: the adapter, for messages.
        config: its config.

    Raises:
        CheckpointError: a value that is no number, or a pattern that is no expression.
        UnsupportedError: expressions that could take forever.
    """

    def __init__(self, label: str, config: Mapping[str, Any]) -> None:
        self._label = label
        self._rank, self._alpha = config.get("r", 8), config.get("lora_alpha", 8)
        self._spent = 0.0
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

    def _compile(self, patterns: Any) -> _Rules:
        if not isinstance(patterns or {}, dict):
            raise self._wrong("rank_pattern or alpha_pattern")
        rules = _Rules()
        for place, (key, value) in enumerate((patterns or {}).items()):
            if _NAME.fullmatch(key):
                rules.names[key] = place, value
            else:
                rules.expressions.append((place, self._expression(key), value))
            if len(rules.expressions) > _MOST_EXPRESSIONS:
                raise self._involved(f"over {_MOST_EXPRESSIONS:,} patterns")
        return rules

    def _expression(self, key: str) -> re.Pattern[str]:
        many = any(len(kind.findall(key)) > _MOST_CHOICES for kind in _CHOICES)
        if many or len(key) > _LONGEST or _NESTED.search(key):
            raise self._involved(f"the pattern {printable(key, 80)}")
        try:
            return re.compile(rf"(.*\.)?({key})")
        except re.error as error:
            raise self._wrong(f"the pattern {printable(key, 80)} ({error})") from error

    def _first(self, rules: _Rules, module: str, otherwise: Any) -> Any:
        if not rules.names and not rules.expressions:
            return otherwise
        if len(module) > _LONGEST:
            raise self._wrong(f"the name {printable(module, 80)} of {len(module):,} characters")
        parts = module.split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))]
        found = [rules.names[end] for end in ends if end in rules.names]
        place, value = min(found, key=lambda rule: rule[0], default=(math.inf, otherwise))
        for number, expression, other in rules.expressions:
            if number > place:
                break
            if self._fits(expression, module):
                return other
        return value

    def _fits(self, expression: re.Pattern[str], module: str) -> bool:
        begin = time.thread_time()
        fits = expression.fullmatch(module) is not None
        self._spent += time.thread_time() - begin
        if self._spent > _SECONDS:
            raise self._involved("patterns")
        return fits

    def _involved(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self._label} has {what}, too involved to be evaluated safely",
            "Replace them in adapter_config.json by the names of the modules.",
        )

    def _wrong(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._label}/adapter_config.json: {what} makes no sense", "Repair or download it."
        )
