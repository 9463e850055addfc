"""Makers of PEFT adapters, and what they do to a base by the formula, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.checkpoints import Tensors, random_tensor, write_json

PREFIX = "base_model.model."
ADAPTER = "adapter_model.safetensors"


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """Write an adapter's two files; `tensors` by the names of the base's modules."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + n: t.contiguous() for n, t in tensors.items()}, folder / ADAPTER)
    write_json(
        folder / "adapter_config.json",
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": False} | config,
    )
    return folder


def factors(
    module: str,
    out: int,
    into: int,
    *,
    rank: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """A and B of a linear layer."""
    return {
        f"{module}.lora_A.weight": random_tensor((rank, into), dtype, seed * 2 + 1),
        f"{module}.lora_B.weight": random_tensor((out, rank), dtype, seed * 2 + 2),
    }


def applied(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + s·B·A of matrices, in float64."""
    return w.double() + scaling * (b.double() @ a.double())
