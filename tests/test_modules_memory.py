"""A merge in memory takes its result and little more, however the models lie in memory."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import streammerge as sm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is read from /proc")
MB = 10**6
BUFFERS = 50 * MB  # four windows, workspaces of two threads, stacks


def peak_over(run: Callable[[], object]) -> int:
    """Bytes of memory that a call needs at its peak, over what the process has before it."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kilobytes("VmRSS")
    result = run()
    after = _kilobytes("VmHWM")
    del result
    return (after - before) * 1024


def _kilobytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def network(layers: int, transposed: bool) -> nn.Module:
    """A module of 40 MB a layer, which the allocator gives back to the system at once."""
    module = nn.Module()
    for layer in range(layers):
        values = torch.zeros(5000, 4000, dtype=torch.bfloat16)
        weight = nn.Parameter(values.t() if transposed else values)
        module.register_parameter(f"weight_{layer}", weight)
    return module


@pytest.mark.parametrize("transposed", [False, True], ids=["in place", "copied in pieces"])
@pytest.mark.parametrize("kind", ["module", "state dict"])
def test_the_peak_is_the_result(kind: str, transposed: bool) -> None:
    models = [network(2, transposed) for _ in range(2)]
    nbytes = sum(p.numel() * 2 for p in models[0].parameters())
    given = models if kind == "module" else [model.state_dict() for model in models]
    sm.average([nn.Linear(2, 2), nn.Linear(2, 2)])  # what is loaded and kept once
    assert nbytes == 80 * MB
    assert nbytes * 0.9 < peak_over(lambda: sm.average(given)) < nbytes + BUFFERS
