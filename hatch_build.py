"""Compiles streammerge/native/kernels.c when the package is built or installed.

What is installed in place gets its bytecode too, as pip makes it for what it copies: where Python
may not write any, each start would compile a hundred modules.

Where there is no C compiler that will do, the package is installed without the library: torch does
the same with the same bits, in several times the time.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

FLAGS = (
    "-std=c11",
    "-O3",
    "-ffp-contract=off",  # a product and a sum are rounded one by one, on every processor
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-psabi",  # vectors are passed to nothing but what is inlined
    "-fPIC",
    "-shared",
)
SOURCE, LIBRARY = "streammerge/native/kernels.c", "streammerge/native/kernels.so"


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled library to wheels and editable installations."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; say on what platform the wheel runs."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if version == "editable":
            compileall.compile_dir(root / "streammerge", quiet=2)
        error = compile_library(root / SOURCE, root / LIBRARY)
        if error:
            self.app.display_warning(f"streammerge is installed without compiled loops: {error}")
            return
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(iter(platform_tags()))}"


def compile_library(source: Path, library: Path) -> str:
    """Compile, and return what went wrong; "" for nothing.

    The library carries the digest of what it was made from, so that no other is used with the
    Python that calls it.
    """
    if sys.platform == "win32":
        return "they are written for gcc and clang"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    compiler = shlex.split(os.environ.get("CC") or "cc")
    made = library.with_suffix(".new")  # who has the present one loaded keeps it
    command = [*compiler, *FLAGS, f'-DSOURCE="{digest}"', "-o", str(made), str(source), "-lm"]
    error = ""
    for more in ([], ["-DONE_TARGET"]):  # not every compiler can choose code by the processor
        try:
            done = subprocess.run([*command, *more], capture_output=True, text=True)
        except OSError as missing:
            return f"no C compiler ({missing})"
        if done.returncode == 0:
            made.replace(library)
            return ""
        error = done.stderr.strip() or f"{compiler[0]} exits with {done.returncode}"
    return error
