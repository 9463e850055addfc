"""Checkpoints made from checkpoints.

A view that wraps one computes what it changes while that is read: a changed tensor gets a virtual
file of its own, whose bytes begin with its first element; all other tensors stay where they are,
zero-copy reads included. So nothing above can tell a view from files.
"""
