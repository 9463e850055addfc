"""Checkpoints made from checkpoints: the same protocol, other tensors."""
