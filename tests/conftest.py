"""Fixtures for every test: no Hub, no colours, and traps for hostile checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.attacks import trap
from tests.support.remote import local_pair, pair
from tests.support.untouched import watch

if TYPE_CHECKING:
    from tests.support.hub import Hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("NO_COLOR", "1")

__all__ = ["hub", "local_pair", "no_waiting", "pair", "trap", "xet_hub"]


@pytest.fixture(autouse=True)
def _inputs_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """No merge of any test touches its inputs; see tests/support/untouched.py."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("changes_inputs") is None:
            watch(patch)
        yield


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """An empty stand-in for the Hub, at which huggingface_hub points; see tests/support/hub."""
    from tests.support.hub.client import running_hub

    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def xet_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A stand-in whose large files go by the Xet path, offline; see tests/support/hub/xet.py."""
    pytest.importorskip("hf_xet", reason="the Xet path needs hf_xet")
    from tests.support.hub.client import running_hub

    with running_hub(tmp_path_factory.mktemp("hub"), xet=True) as hub:
        yield hub


@pytest.fixture
def no_waiting() -> Iterator[list[float]]:
    """The client retries at once; the list has the seconds that it would have waited."""
    from tests.support.hub.client import waits_taken_away

    with waits_taken_away() as seconds:
        yield seconds
