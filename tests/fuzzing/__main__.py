"""Fuzzes guided by coverage: `python -m tests.fuzzing [TARGET… | all] [-max_total_time=60]`.

Needs atheris (`pip install -e '.[fuzz]'`), and passes libFuzzer's options on. What it finds
interesting stays in the folder for temporary files, for the next run. A crash, a hang or too much
memory ends it with the file in tests/corpus/TARGET, where the tests read it from then on.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["streammerge"]):
    from tests.fuzzing.bounds import survives
    from tests.fuzzing.mutations import TOKENS
    from tests.fuzzing.targets import TARGETS, Target

CORPUS = Path(__file__).parent.parent / "corpus"


def dictionary(target: Target) -> str:
    """What to insert, in libFuzzer's format: the mutations' tokens, and the good file's words."""
    words = {*TOKENS, *re.findall(rb'"[^"]*"|\w+', target.seed)}
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words if len(word) <= 60)
    return "".join(f'"{word}"\n' for word in sorted(escaped))


def fuzz(name: str, options: list[str]) -> None:
    """Fuzz one target in this process; does not return."""
    target, known = TARGETS[name], CORPUS / name
    known.mkdir(exist_ok=True)
    found = Path(tempfile.gettempdir(), f"streammerge-fuzz-{name}")
    found.mkdir(exist_ok=True)
    (found / "seed").write_bytes(target.seed)
    tokens = found.with_suffix(".dict")
    tokens.write_text(dictionary(target))
    words = [sys.argv[0], str(found), str(known), f"-artifact_prefix={known}/", f"-dict={tokens}"]
    limits = ["-timeout=5", "-max_len=20000"]
    atheris.Setup([*words, *limits, *options], lambda data: survives(target.read, data))
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
