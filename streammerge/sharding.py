"""The split of an output into files: by names and sizes alone, whatever that of the inputs is."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from huggingface_hub import split_state_dict_into_shards_factory

from streammerge.plan import OutputShard, OutputTensor
from streammerge.tensors import layout_key

LARGEST = 5_000_000_000
"""Bytes of a shard by default, as on the Hub."""
ONE_FILE = 3_000_000_000
"""Bytes up to which all tensors lie in one file by default."""
_STEP = 2**24  # bytes to which equal shards are equal


def split(tensors: Sequence[OutputTensor], max_shard_size: int | None) -> tuple[OutputShard, ...]:
    """Return the shards of an output, named and packed as the Hub's client does it.

    Args:
        tensors: of the output.
        max_shard_size: bytes of tensor data in a shard, unless one tensor is larger. None for one
            file up to `ONE_FILE`, and beyond that for pairs of shards about equally large, of at
            most `LARGEST`, as far as the tensors allow.
    """
    by_name = {tensor.name: tensor for tensor in sorted(tensors, key=_natural_key)}
    if max_shard_size is None:
        max_shard_size = _even([tensor.info.nbytes for tensor in by_name.values()])
    packed = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor.info.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return tuple(
        OutputShard(
            file=file,
            tensors=tuple(sorted((by_name[n] for n in names), key=lambda t: layout_key(t.info))),
        )
        for file, names in packed.filename_to_tensors.items()
    )


def _even(sizes: Sequence[int]) -> int:
    """Return the bound that packs tensors of these sizes into few shards of one size, in pairs.

    The digest of a file is one stream, slower than a good disk or the page cache. Two shards are
    written at once, with a digest each: one without a partner would take as long as two.
    """
    total = sum(sizes)
    if total <= ONE_FILE:
        return LARGEST
    fewest = _packed(sizes, LARGEST)
    count = fewest + fewest % 2
    bounds = range(max(total // count, *sizes), LARGEST, _STEP)
    first = bisect_left(bounds, True, key=lambda bound: _packed(sizes, bound) <= count)
    return bounds[first] if first < len(bounds) else LARGEST


def _packed(sizes: Sequence[int], bound: int) -> int:
    """Return the number of shards, each filled until the next tensor would go beyond a bound."""
    shards, filled = 1, 0
    for size in sizes:
        if filled and filled + size > bound:
            shards, filled = shards + 1, 0
        filled += size
    return shards


def _natural_key(tensor: OutputTensor) -> list[tuple[int, str]]:
    """Order layers.2 before layers.10; the digits' text breaks ties such as 1 and 01."""
    parts = re.split(r"(\d+)", tensor.name)
    return [(int(part) if part.isascii() and part.isdigit() else -1, part) for part in parts]
