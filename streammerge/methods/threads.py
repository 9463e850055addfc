"""torch's own threads: one beside each compute thread, since more would compete for the cores."""

from __future__ import annotations

_before: int | None = None


def use_one_thread() -> None:
    """Have torch work in the calling thread alone, here and in all threads, until `restore`."""
    import torch

    global _before
    count = torch.get_num_threads()
    if count != 1:
        _before = _before or count
        torch.set_num_threads(1)


def restore() -> None:
    """Give torch its threads back, if they were taken."""
    global _before
    if _before is not None:
        import torch

        torch.set_num_threads(_before)
        _before = None
