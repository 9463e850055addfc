"""The processor's own word on whether a sum was rounded: the inexact flag of IEEE 754.

The flag of a thread stays up from the first rounded operation until it is cleared (IEEE 754-2019,
section 7.6). Sums of fine-tunes of one model are hardly ever rounded in fp32, and to ask the
processor costs nothing, where to compare exponents costs half as much again as the merge.
"""

from __future__ import annotations

import ctypes
import functools
import platform

import torch

_FE_INEXACT = {"x86_64": 0x20, "amd64": 0x20, "aarch64": 0x10, "arm64": 0x10}


class RoundingWatch:
    """Tells whether floating-point operations of this thread rounded anything since `start`.

    Where the flag cannot be read, or the work is done on a device or by several threads, every
    answer is yes.
    """

    def __init__(self, device: torch.device) -> None:
        self._math, self._flag = _libm(), _FE_INEXACT.get(platform.machine().lower(), 0)
        alone = device.type == "cpu" and torch.get_num_threads() == 1
        self._usable = alone and _flag_works()

    def start(self) -> None:
        """Clear the flag."""
        if self._usable:
            self._math.feclearexcept(self._flag)

    def rounded(self) -> bool:
        """Whether anything may have been rounded since `start`."""
        return not self._usable or bool(self._math.fetestexcept(self._flag))


@functools.cache
def _libm() -> ctypes.PyDLL:
    return ctypes.PyDLL(None)  # what the interpreter is linked with; find_library would run gcc


@functools.cache
def _flag_works() -> bool:
    """Try the flag on sums whose exactness is known, of lengths that use all code paths."""
    flag = _FE_INEXACT.get(platform.machine().lower(), 0)
    clear = getattr(_libm(), "feclearexcept", None)
    test = getattr(_libm(), "fetestexcept", None)
    if not flag or clear is None or test is None:
        return False

    def raised(term: torch.Tensor) -> bool:
        total = torch.full_like(term, 3.0)
        clear(flag)
        total.add_(term, alpha=5)
        return bool(test(flag))

    for numel in (1, 7, 64, 4096 + 3):
        exact = torch.full((numel,), 0.5)
        if raised(exact):
            return False
        for position in {0, numel // 2, numel - 1}:
            inexact = exact.clone()
            inexact[position] = 2.0**-30
            if not raised(inexact):
                return False
    return True
