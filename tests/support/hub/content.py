"""Endpoints that hand out files: `resolve` on the Hub, and the store on its other host.

As on the Hub, `resolve` sends no content itself: a file that git keeps is redirected to a path on
the same host, a large file to a signed link on the store. The store takes no token and refuses a
request that brings one, so that a client which forwards its token there is found out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from tests.support.hub import access
from tests.support.hub.access import Refused
from tests.support.hub.log import Entry
from tests.support.hub.reading import missing, opened
from tests.support.hub.repos import Blob

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

PIECE = 256 * 1024


async def resolve(hub: Hub, request: Request, entry: Entry) -> Response:
    """Where the content of a file lies, with its commit, size and digest in the headers."""
    repository, commit = opened(hub, request, entry)
    access.check_gate(repository, access.caller(request))
    blob = commit.files.get(entry.file)
    if blob is None:
        raise missing(entry.file, commit)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "ETag": f'"{blob.etag}"'}
    if blob.sha256 is not None:
        headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
        if xet_hash := hub.xet_hash(blob):
            route = f"{hub.url}/api/models/{repository.id}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{route}>; rel="xet-auth"'}
        hub.large(blob)
        link = hub.signed(f"/{repository.id}/{blob.sha256}", repo=entry.repo, file=entry.file)
        return RedirectResponse(link, 302, headers)
    cached = f"/api/resolve-cache/models/{repository.id}/{commit.oid}/{quote(entry.file)}"
    return RedirectResponse(f"{cached}?{urlencode({'etag': blob.oid})}", 307, headers)


async def cached(hub: Hub, request: Request, entry: Entry) -> Response:
    """The content of a file that git keeps."""
    repository, commit = opened(hub, request, entry)
    access.check_gate(repository, access.caller(request))
    blob = commit.files.get(entry.file)
    if blob is None:
        raise missing(entry.file, commit)
    return Content(blob, request, {"X-Repo-Commit": commit.oid})


async def download(hub: Hub, request: Request, entry: Entry) -> Response:
    """The content of a large file, from the store."""
    check_signature(hub, request)
    path = hub.objects.path(request.path_params["oid"])
    if not path.exists():
        raise Refused(404, "The specified key does not exist.")
    return Content(Blob.large(path.name, path.stat().st_size), request, {}, path)


def check_signature(hub: Hub, request: Request) -> None:
    """Refuse a link that has expired, and a token, as a store of objects does."""
    if "authorization" in request.headers:
        raise Refused(400, "Only one auth mechanism allowed")
    if int(request.query_params.get("signature", "-1")) < hub.oldest_link:
        raise Refused(403, "Request has expired")


class Content(Response):
    """A file or the range of it that was asked, sent piece by piece."""

    def __init__(
        self, blob: Blob, request: Request, headers: dict[str, str], path: Path | None = None
    ) -> None:
        self.blob, self.path = blob, path
        self.start, self.stop, status = 0, blob.size, 200
        asked = request.headers.get("range", "")
        if asked.startswith("bytes=") and "," not in asked:
            self.start, self.stop, status = _span(asked.removeprefix("bytes="), blob.size)
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {self.start}-{self.stop - 1}/{blob.size}"
        if status == 416:
            headers["Content-Range"] = f"bytes */{blob.size}"
        headers["Content-Length"] = str(self.stop - self.start)
        headers["Content-Type"] = "application/octet-stream"
        self.status_code = status
        self.raw_headers = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        self.head = request.method == "HEAD"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        if not self.head and self.path is not None:
            file = os.open(self.path, os.O_RDONLY)
            try:
                for at in range(self.start, self.stop, PIECE):
                    if scope["state"]["transport"]().is_closing():
                        return  # nobody listens any more
                    body = os.pread(file, min(PIECE, self.stop - at), at)
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            finally:
                os.close(file)
        elif not self.head:
            body = self.blob.data[self.start : self.stop]
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _span(asked: str, size: int) -> tuple[int, int, int]:
    """First byte, byte after the last, and the status for one range such as 5-9, 5- or -5."""
    first, last = asked.split("-")
    if not first:
        return max(0, size - int(last)), size, 206
    start, stop = int(first), min(size, int(last) + 1) if last else size
    return (start, stop, 206) if start < stop else (0, 0, 416)
