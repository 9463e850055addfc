"""Calls that fail, one by one: no wrong output, a clear error, and the next run ends as it should.

`make test` lets a sample fail, `make test-all` every single call.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import streammerge
from streammerge.errors import StreammergeError
from streammerge.outputs.directory import STAGING
from tests.support.faults import CHANGES, SHORT, Disk, failing
from tests.support.merging import snapshot
from tests.support.sites import LAYOUTS, files, loadable, make_site, merge

pytestmark = pytest.mark.unwatched  # looking at the inputs would count as calls
CODES = {"EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "short": SHORT}
EACH = pytest.mark.parametrize("layout", ["one file", "shards", "over an older output"])
KINDS = pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return make_site(tmp_path)


def begin(site: Path, layout: str) -> tuple[list[str], Path]:
    """The models, and an output folder as it is before the merge."""
    out = site / "out"
    shutil.rmtree(out, ignore_errors=True)
    if "overwrite" in LAYOUTS[layout]:
        shutil.copytree(site / "old", out)
    return [str(site / "m0"), str(site / "m1")], out


def fail_and_go_on(site: Path, layout: str, disk: Disk) -> bool:
    """Merge on a disk that fails, and see what is left, and what a second run makes of it.

    Returns:
        whether the call was reached.
    """
    models, out = begin(site, layout)
    inputs = snapshot(*map(Path, models))
    error: StreammergeError | None = None
    with failing(disk):
        try:
            merge(models, out, io="buffered", **LAYOUTS[layout])
        except StreammergeError as caught:
            error = caught
    where = f"call {disk.number}, {disk.failed[:1]}"
    assert snapshot(*map(Path, models)) == inputs, f"an input was touched: {where}"
    if loadable(out):
        weights = {name: data for name, data in files(out).items() if STAGING not in name}
        older = files(site / "old") if "overwrite" in LAYOUTS[layout] else {}
        assert weights in (files(site / f"whole {layout}"), older), f"a wrong model: {where}"
    if error is None:
        assert files(out) == files(site / f"whole {layout}"), f"another result: {where}"
        return disk.number is not None and len(disk.calls) > disk.number
    assert_told(error, disk)
    merge(models, out, **LAYOUTS[layout])
    assert files(out) == files(site / f"whole {layout}"), f"another result afterwards: {where}"
    return True


def assert_told(error: StreammergeError, disk: Disk) -> None:
    """The message names a file that failed, says why, and has no traceback in it."""
    said = str(error)
    assert any(Path(path).name in said for _, path in disk.failed), f"{disk.failed}, but: {said}"
    assert "Traceback" not in said
    assert error.remedy


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "short"])
@EACH
@KINDS
def test_a_sample_of_calls_fails(site: Path, layout: str, code: str, lasting: bool) -> None:
    first = (len(layout) + len(code)) % 7
    for number in range(first, 2000, 67):
        if not fail_and_go_on(site, layout, Disk(site, number, CODES[code], lasting)):
            break
    else:
        pytest.fail("the merge never came to its end")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("code", CODES)
@EACH
@KINDS
def test_every_call_fails(site: Path, layout: str, code: str, lasting: bool) -> None:
    number = 0
    while fail_and_go_on(site, layout, Disk(site, number, CODES[code], lasting)):
        number += 1
    print(f"{layout}, {code}, {'lasting' if lasting else 'once'}: {number} calls")
    assert number > 100


def test_what_fails_is_what_a_merge_does(site: Path) -> None:
    """The harness sees each kind of call, and without a fault changes nothing."""
    models, out = begin(site, "over an older output")
    with failing(Disk(site)) as disk:
        merge(models, out, io="buffered", **LAYOUTS["over an older output"])
    assert files(out) == files(site / "whole over an older output")
    seen = {name for name, _ in disk.calls}
    assert seen >= {*CHANGES, "preadv", "read", "open", "scandir"}


def test_a_verification_on_a_failing_disk(site: Path) -> None:
    out = site / "whole shards"
    with failing(Disk(site)) as disk:
        assert streammerge.verify(out).ok
    for number in range(0, len(disk.calls), 5):
        with failing(replace(disk, number=number, lasting=True, calls=[], failed=[])) as broken:
            try:
                found = streammerge.verify(out).findings
            except StreammergeError as error:
                found = [error]  # type: ignore[list-item]
        assert found, f"{broken.failed} went unseen"
