"""Runs a merge of one good checkpoint and one bad one, and sees that it is refused cleanly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import streammerge
from tests.support.checkpoints import Tensors, add_side_files, write_checkpoint
from tests.support.merging import assert_untouched, refusal, snapshot
from tests.support.raw import tensor_bytes


def victim() -> Tensors:
    """What both checkpoints would hold if nothing were wrong."""
    return {
        "a.weight": torch.arange(8, dtype=torch.float32).reshape(2, 4),
        "b.weight": torch.ones(4, dtype=torch.float32),
    }


def victim_data() -> bytes:
    """The victim's 48 bytes in the order of its names."""
    return b"".join(tensor_bytes(t) for t in victim().values())


class Trap:
    """Two folders: a good checkpoint, and a bad one that the test fills."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good = add_side_files(write_checkpoint(root / "good", victim(), shards=2))
        self.bad = root / "bad"
        self.bad.mkdir()
        self.out = root / "out"

    def refused(self, *patterns: str, bad: Path | None = None) -> str:
        """Both commands refuse, whichever place the bad one takes; nothing is touched."""
        inputs = [self.good, self.bad, bad.parent if bad and bad.is_file() else self.bad]
        before = snapshot(*inputs)
        messages = []
        for models in ([self.good, bad or self.bad], [bad or self.bad, self.good]):
            names = [str(m) for m in models]
            messages.append(
                refusal(lambda n=names: streammerge.plan_average(n, str(self.out)), *patterns)
            )
            refusal(lambda n=names: streammerge.average(n, str(self.out)), *patterns)
        assert_untouched(self.out)
        assert snapshot(*inputs) == before, "an input was changed"
        assert sorted(p.name for p in self.root.iterdir() if p.name == "pwned") == []
        assert "\x1b" not in messages[0], "the message carries a terminal escape"
        return messages[0]


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    """A trap in a folder of its own."""
    return Trap(tmp_path)
