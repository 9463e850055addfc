"""Large checkpoints that take no room: all zeros, in a sparse file."""

from __future__ import annotations

from pathlib import Path

from tests.support.raw import entry, write_raw


def sparse_checkpoint(folder: Path, tensor_bytes: int, extra: int = 3) -> Path:
    """One bf16 tensor of the given size and some small ones, without writing the data."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, size in [
        ("big.weight", tensor_bytes),
        *((f"s{i}.weight", 2000) for i in range(extra)),
    ]:
        header[name] = entry("BF16", [size // 2], end, end + size)
        end += size
    path = write_raw(folder / "model.safetensors", header, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)
    return folder
