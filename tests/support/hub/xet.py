"""The Xet path, offline: `hf_xet` takes a folder (`local://…`) for the storage of chunks.

The tokens that the stand-in hands out name such a folder, and hf_xet writes and reads it itself.
So the bytes do not pass through the stand-in: the log shows the tokens asked for, not the content,
and faults can hit the tokens only. What a commit refers to is looked up in the folder's index
files ("shards" of Xet, https://huggingface.co/docs/xet/shard), which hold the sha256 of each file.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.hub import access
from tests.support.hub.log import Entry
from tests.support.hub.reading import opened

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

RECORD = 48  # bytes of every record in the files section of an index
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
LIFETIME = 3600  # seconds


class Chunks:
    """The folder of chunks, and which file of it has which sha256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"local://{folder}"
        self._known: dict[str, str] = {}
        self._read: set[Path] = set()

    def hash(self, sha256: str | None) -> str | None:
        """Xet's own hash of a file whose upload was finished."""
        for index in set(self.folder.glob("xet/xorbs/shards/*.mdb")) - self._read:
            self._known.update(_files(index.read_bytes()))
            self._read.add(index)
        return self._known.get(sha256 or "")

    def put(self, source: Path) -> None:
        """Cut a file into chunks, as an upload does."""
        import hf_xet

        with hf_xet.XetSession().new_upload_commit(**self._access()) as commit:
            commit.start_upload_file(str(source), sha256=hf_xet.COMPUTE_SHA256)

    def fetch(self, xet_hash: str, size: int, target: Path) -> None:
        """Put a file together again, as a download does."""
        import hf_xet

        with hf_xet.XetSession().new_file_download_group(**self._access()) as group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash, size), str(target))

    def _access(self) -> dict[str, str | int]:
        expiry = int(time.time()) + LIFETIME
        return {"endpoint": self.url, "token": "local", "token_expiry_unix_secs": expiry}


def _files(index: bytes) -> Iterator[tuple[str, str]]:
    """sha256 and Xet hash of the files of an index.

    After a header of 48 bytes come the files: a record with hash, flags and the number of
    segments, then a record for each segment, again as many if they carry verification, and one
    with the sha256 if the flags say so. A hash of all ones ends the section.
    """
    at = RECORD
    while index[at : at + 32] != b"\xff" * 32:
        own = index[at : at + 32]
        flags, segments = struct.unpack_from("<II", index, at + 32)
        at += RECORD * (1 + segments * (2 if flags & HAS_VERIFICATION else 1))
        if flags & HAS_METADATA:
            yield _text(index[at : at + 32]), _text(own)
            at += RECORD


def _text(digest: bytes) -> str:
    """Xet writes a hash as four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


async def token(hub: Hub, request: Request, entry: Entry) -> Response:
    """Leave to read or to write chunks; the folder stands for the storage service."""
    user = access.caller(request)
    if "xet-write-token" in request.scope["path"]:
        repository = access.visible(hub.repositories, entry.repo, user)
        if "create_pr" not in request.query_params:
            access.check_write(repository, user)
    else:
        access.check_gate(opened(hub, request, entry)[0], user)
    if hub.chunks is None:
        raise access.Refused(404, "Xet is not enabled for this repository")
    expiry = int(time.time()) + LIFETIME
    headers = {
        "X-Xet-Cas-Url": hub.chunks.url,
        "X-Xet-Access-Token": "local",
        "X-Xet-Token-Expiration": str(expiry),
    }
    answer = {"casUrl": hub.chunks.url, "accessToken": "local", "exp": expiry}
    return JSONResponse(answer, headers=headers)
