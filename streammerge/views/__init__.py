"""Checkpoints that wrap a checkpoint: what they change is computed while it is read.

A changed tensor gets a virtual file of its own, whose bytes begin with its first element; all other
tensors stay where they are, zero-copy reads included. So nothing above can tell a view from files.
"""
