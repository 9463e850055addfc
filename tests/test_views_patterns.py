"""The rank of each module by an adapter's patterns: as peft has it, and never for long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammerge.errors import UnsupportedError
from streammerge.views.patterns import Patterns

PARTS = st.sampled_from(["layers", "0", "1", "q", "k", "v_proj", "model"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
EXPRESSIONS = st.sampled_from([r"layers\.[0-9]+\.q", "^model.*", "(q|k)$", ".*", r"\w+"])


@given(st.lists(NAMES | EXPRESSIONS, unique=True, max_size=6), NAMES)
def test_the_first_pattern_that_fits_counts(patterns: list[str], module: str) -> None:
    """`peft.utils.other.get_pattern_key`: an expression for the end of the name."""
    ranks = {pattern: 2 + place for place, pattern in enumerate(patterns)}
    fits = (rank for pattern, rank in ranks.items() if re.match(rf"(.*\.)?({pattern})$", module))
    assert Patterns("x", {"r": 1, "rank_pattern": ranks}).rank(module) == next(fits, 1)


def test_names_are_looked_up_however_many_there_are() -> None:
    names = [f"model.layers.{i}.experts.{j}.up_proj" for i in range(50) for j in range(200)]
    patterns = Patterns("x", {"rank_pattern": {name: i + 1 for i, name in enumerate(names)}})
    assert [patterns.rank(name) for name in names] == list(range(1, len(names) + 1))


def test_expressions_that_take_long_together_are_refused() -> None:
    patterns = Patterns("x", {"rank_pattern": {".*.*.*!": 1}})
    names = ["." * 150 + str(i) for i in range(1_000)]
    with pytest.raises(UnsupportedError, match="too involved"):
        list(map(patterns.rank, names))


def test_too_many_expressions_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="over 1,000 patterns"):
        Patterns("x", {"rank_pattern": {f"{i}.*": 1 for i in range(1_001)}})
