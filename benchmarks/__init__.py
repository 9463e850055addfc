"""Measurements of streammerge beside its peers and beside the floor, on whatever machine runs them.

What each module is for, and how to run it from the repository's root:

    python -m benchmarks.bench     ours, the floor, mergekit, a naive loop and cp, in one run
    python -m benchmarks.methods   the merge methods beside mergekit and the floor, in one run
    python -m benchmarks.scaling   time and memory as models, sizes and tensors grow
    python -m benchmarks.memory    does a merge stay under --memory, also inside a cgroup?
    python -m benchmarks.kernels   the arithmetic alone against the machine's memcpy
    python -m benchmarks.floor     the same bytes read and written, no arithmetic
    python -m benchmarks.peers     the naive loop on its own
    python -m benchmarks.data      random checkpoints to measure with

Everything is written below `--workdir` (default: the user's cache folder) and removed at the end.
"""
