"""A stand-in for the Hugging Face Hub, for tests with the real `huggingface_hub` client.

The fixture `hub` (tests/conftest.py) starts it in a thread, empty, on two free ports, and points
the client of this process at it (`HF_ENDPOINT`, a fresh `HF_HOME`, the token `WRITE`, no Xet):

    def test_something(hub: Hub, tmp_path: Path) -> None:
        hub.create("org/model-a", tiny_llama(tmp_path / "a", 1))      # a folder, or path → bytes
        hub.create("org/secret", {"config.json": "{}"}, private=True)
        hub.create("org/gated", {"config.json": "{}"}, gated="manual", readers=["me"])
        hub.commit("org/model-a", {"config.json": b"{}"}, branch="v2")
        streammerge.average(["org/model-a", "org/model-a@v2"], str(tmp_path / "out"))
        run(["streammerge", …], env=hub_environment(hub, home=tmp_path / "home"))

        assert hub.log.downloaded(file="*.safetensors") < 200_000      # bytes of content
        assert hub.log.ranges("model.safetensors") == [(0, 100_001)]   # (first, after the last)
        assert hub.log.commits("me/merged") == 1
        assert hub.log.uploaded_twice() == []
        assert not hub.log.find("commit", where=lambda e: e.status == 412)
        hub.read("me/merged", "README.md"); hub.head("me/merged"); hub.files("me/merged")

The process is user `me` (organisation `my-org`); `monkeypatch.setenv("HF_TOKEN", READ)` makes it
one that may only read, `STRANGER` another user, and `delenv` nobody.

Faults hit the next request that matches (`times=None`: every one; `skip=2`: from the third on):

    hub.fault(Cut(5000), kind="download", file="*00002*")          # close after 5000 bytes of body
    hub.fault(Status(503), kind="download", times=3)
    hub.fault(Status(429, retry_after=1), kind="resolve")
    hub.fault(Slow(1e6), kind="download", times=None)              # bytes a second
    hub.fault(WrongBytes(at=4096), kind="download", times=None)    # the size stays right
    hub.fault(LoseAnswer(), kind="commit")                         # done, but nobody is told
    hub.fault(Status(412), kind="commit")
    hub.fault(Do(lambda: hub.commit("org/a", {…})), kind="download", skip=3)   # moves in the middle
    hub.fault(Status(500), kind="upload", times=None)
    hub.fault(RefuseObject(), kind="lfs_batch")
    hub.expire_links()                                             # signed links answer 403
    hub.stop()                                                     # no network any more
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

The fixture `xet_hub` is the same with the Xet path on, which works offline; see xet.py for what its
log cannot see.

The client waits seconds between its retries: the fixture `no_waiting` takes the waiting away and
is the list of the seconds it would have waited.

Kinds of requests (`log.find(kind)`, `fault(kind=…)`): info, tree, paths_info, refs, commits,
auth_check, whoami, create_repo, branch, tag, settings, validate_yaml, preupload, lfs_batch,
lfs_complete, lfs_verify, xet_token, commit, resolve (HEAD, and GET that is answered with a redirect
only), download (content: small files from the Hub, large ones from the store), upload (PUT to the
store).
"""

from tests.support.hub.access import ME, READ, STRANGER, WRITE
from tests.support.hub.client import hub_environment
from tests.support.hub.effects import (
    Cut,
    CutUpload,
    Do,
    Drop,
    Effect,
    IgnoreRange,
    LoseAnswer,
    RefuseObject,
    ShortRange,
    Slow,
    Status,
    Wait,
    WrongBytes,
)
from tests.support.hub.faults import Fault
from tests.support.hub.hub import Hub
from tests.support.hub.log import Entry, Log

__all__ = [
    "ME",
    "READ",
    "STRANGER",
    "WRITE",
    "Cut",
    "CutUpload",
    "Do",
    "Drop",
    "Effect",
    "Entry",
    "Fault",
    "Hub",
    "IgnoreRange",
    "Log",
    "LoseAnswer",
    "RefuseObject",
    "ShortRange",
    "Slow",
    "Status",
    "Wait",
    "WrongBytes",
    "hub_environment",
]
