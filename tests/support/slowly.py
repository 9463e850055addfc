"""The command line on a disk that takes a second for each write: `python -m tests.support.slowly`.

So a test can stop a merge half-way however late it gets to it.
"""

from __future__ import annotations

import time

from streammerge.cli import main
from streammerge.outputs.shardfile import DirectoryShard

_write = DirectoryShard.write


def _write_slowly(self: DirectoryShard, offset: int, buffer: memoryview, length: int) -> None:
    _write(self, offset, buffer, length)
    time.sleep(1)


if __name__ == "__main__":
    DirectoryShard.write = _write_slowly  # type: ignore[method-assign]
    main()
