"""Fuzzes a target guided by coverage: `python -m tests.fuzzing [TARGET… | all] [-max_total_time=60]`.

Needs atheris (`pip install -e '.[fuzz]'`). What it finds interesting goes to a folder of its own, and
a crash, a hang or too much memory ends it with the file in tests/corpus/TARGET, where the tests read
it from then on.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["streammerge"]):
    from tests.fuzzing.bounds import survives
    from tests.fuzzing.targets import TARGETS

CORPUS = Path(__file__).parent.parent / "corpus"


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    target, known = TARGETS[name], CORPUS / name
    known.mkdir(exist_ok=True)
    found = Path(tempfile.gettempdir(), f"streammerge-fuzz-{name}")
    found.mkdir(exist_ok=True)
    (found / "seed").write_bytes(target.seed)
    words = [sys.argv[0], str(found), str(known), f"-artifact_prefix={known}/", "-timeout=5"]
    atheris.Setup([*words, "-max_len=20000", *options], lambda data: survives(target.read, data))
    atheris.Fuzz()


def main() -> int:
    """Fuzz one target here, or several in processes of their own, one after the other."""
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    names = [word for word in sys.argv[1:] if not word.startswith("-")] or ["all"]
    if names == ["all"]:
        names = list(TARGETS)
    if len(names) == 1:
        fuzz(names[0], options)
    status = 0
    for name in names:
        print(f"fuzzing {name}", flush=True)
        status |= subprocess.run(
            [sys.executable, "-m", "tests.fuzzing", name, *options], check=False
        ).returncode
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
