"""Hostile side files: what a config or module list names outside its folder is never copied."""

from __future__ import annotations

import contextlib

import pytest

import streammerge
from streammerge.errors import StreammergeError
from tests.support.attacks import Trap, victim
from tests.support.checkpoints import add_side_files, write_checkpoint, write_json
from tests.support.merging import snapshot


def test_config_that_names_code_outside_the_folder_copies_none_of_it(trap: Trap) -> None:
    (trap.root / "evil.py").write_text("print('pwned')\n")
    outside = str(trap.root / "evil")
    names = {"AutoModel": "../evil.Model", "AutoConfig": f"{outside}.Config", "x": ["....evil.A"]}
    write_checkpoint(trap.bad, victim())
    add_side_files(trap.bad, {"model_type": "toy", "auto_map": names})
    assert_contained(trap, b"pwned")


@pytest.mark.parametrize("path", ["..", ".", "../good", "/etc", "sub/..", ""])
def test_modules_that_lie_outside_the_folder_copy_nothing_of_it(trap: Trap, path: str) -> None:
    for place in (trap.root, trap.root / "good"):
        (place / "config.json").write_text('{"model_type": "pwned"}')
        (place / "vocab.txt").write_text("pwned")
    write_checkpoint(trap.bad, victim(), config={"model_type": "toy"})
    write_json(trap.bad / "modules.json", [{"idx": 0, "name": "0", "path": path, "type": "x.Y"}])
    trap.good = write_checkpoint(trap.root / "good2", victim())
    assert_contained(trap, b"pwned")


def assert_contained(trap: Trap, alien: bytes) -> None:
    """The merge is refused or not, but nothing is written outside OUT and nothing alien in it."""
    before = snapshot(trap.root)
    out = trap.root / "deep" / "er" / "out"
    with contextlib.suppress(StreammergeError):
        streammerge.average([str(trap.bad), str(trap.good)], str(out))
    after = {name: seen for name, seen in snapshot(trap.root).items() if "/deep" not in name}
    assert {n: digest for n, (_, digest) in after.items()} == {
        n: digest for n, (_, digest) in before.items()
    }, "something outside OUT was written"
    written = [p for p in (trap.root / "deep").rglob("*") if p.is_file()]
    assert all(p.parent == out for p in written), f"written outside OUT: {written}"
    assert not [p for p in written if alien in p.read_bytes()], "an alien file was copied"
