"""Fixtures for every test: no Hub, no colours, and traps for hostile checkpoints."""

from __future__ import annotations

import os

from tests.support.attacks import trap

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("NO_COLOR", "1")

__all__ = ["trap"]
