"""Files from strangers, mutated by the thousand: typed errors only, in a second and in 50 MB."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.bounds import survives
from tests.fuzzing.mutations import hostile
from tests.fuzzing.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())
EACH = pytest.mark.parametrize("name", TARGETS)
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]


@EACH
def test_the_files_that_are_mutated_are_good_ones(name: str) -> None:
    TARGETS[name].read(TARGETS[name].seed)


@EACH
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_some_mutated_files(name: str, data: st.DataObject) -> None:
    survives(TARGETS[name].read, data.draw(hostile(TARGETS[name])))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@EACH
@settings(max_examples=2_000, deadline=None, suppress_health_check=CHECKS)
@given(data=st.data())
def test_eighteen_thousand_mutated_files(name: str, data: st.DataObject) -> None:
    survives(TARGETS[name].read, data.draw(hostile(TARGETS[name])))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_has_been_found_before(path: Path) -> None:
    survives(TARGETS[path.parent.name].read, path.read_bytes())
