"""Endpoints for large files: the batch call of git-lfs, uploads to the store, and their check.

A file of up to `hub.part_size` bytes is one PUT; a larger one is a PUT for each part and a
completion, as with S3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.hub import access
from tests.support.hub.access import Refused
from tests.support.hub.content import check_signature
from tests.support.hub.log import Entry
from tests.support.hub.repos import Repository

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

Json = dict[str, Any]


def _allowed(hub: Hub, request: Request, entry: Entry) -> Repository:
    """Who may upload. Without a ref the upload may be for a pull request: reading is enough."""
    user = access.caller(request)
    repository = access.visible(hub.repositories, entry.repo, user)
    if user.name is None or user.role != "write":
        access.check_write(repository, user)
    return repository


async def batch(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, asked = _allowed(hub, request, entry), await request.json()
    if "ref" in asked:
        access.check_write(repository, access.caller(request))
        access.commit_of(repository, asked["ref"]["name"])
    refusal = getattr(request.state, "refusal", None)
    objects = []
    for item in asked["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if refusal:
            answer |= {"error": refusal}
        elif item["oid"] not in repository.objects:
            answer |= {"authenticated": True, "actions": _actions(hub, repository, item)}
        objects.append(answer)
    several = "multipart" in asked.get("transfers", [])
    return JSONResponse({"transfer": "multipart" if several else "basic", "objects": objects})


def _actions(hub: Hub, repository: Repository, item: Json) -> Json:
    oid, size = item["oid"], item["size"]
    verify = {"href": f"{hub.url}/{repository.id}.git/info/lfs/objects/verify"}
    place = f"/{repository.id}/{oid}"
    if size <= hub.part_size:
        return {"upload": {"href": hub.signed(place, size=size)}, "verify": verify}
    parts = math.ceil(size / hub.part_size)
    header = {f"{n:05}": hub.signed(place, part=n) for n in range(1, parts + 1)}
    href = f"{hub.url}/api/complete_multipart/{repository.id}/{oid}"
    return {
        "upload": {"href": href, "header": {"chunk_size": str(hub.part_size), **header}},
        "verify": verify,
    }


async def upload(hub: Hub, request: Request, entry: Entry) -> Response:
    """A large file, or a part of one; nothing is kept of an upload that breaks off."""
    check_signature(hub, request)
    if entry.repo not in hub.repositories:
        raise Refused(404, "The specified bucket does not exist.")
    oid = request.path_params["oid"]
    with hub.objects.incoming() as incoming:
        try:
            async for piece in request.stream():
                incoming.write(piece)
        except BaseException:
            incoming.discard()
            raise
    if entry.part:
        hub.parts[entry.repo, oid, int(entry.part)] = incoming
    elif incoming.sha256 != oid:
        incoming.discard()
        raise Refused(400, f"The content is not that of {oid}")
    else:
        incoming.keep()
        hub.repositories[entry.repo].objects.add(oid)
    return Response(headers={"ETag": f'"{incoming.sha256}"'})


async def complete(hub: Hub, request: Request, entry: Entry) -> Response:
    """Join the parts of an upload; the client sends no token here, the link is a secret."""
    asked, oid = await request.json(), request.path_params["oid"]
    with hub.objects.incoming() as whole:
        for part in asked["parts"]:
            piece = hub.parts.get((entry.repo, oid, part["partNumber"]))
            if piece is None or part["etag"] != f'"{piece.sha256}"':
                whole.discard()
                raise Refused(400, f"InvalidPart: {part['partNumber']}")
            whole.write(piece.path.read_bytes())
    if whole.sha256 != oid or oid != asked["oid"]:
        whole.discard()
        raise Refused(400, f"The content is not that of {oid}")
    whole.keep()
    for part in asked["parts"]:
        hub.parts.pop((entry.repo, oid, part["partNumber"])).discard()
    hub.repositories[entry.repo].objects.add(oid)
    return JSONResponse({"success": True})


async def verify(hub: Hub, request: Request, entry: Entry) -> Response:
    """Confirm that an object arrived whole."""
    repository, asked = _allowed(hub, request, entry), await request.json()
    oid, size = asked["oid"], asked["size"]
    if oid not in repository.objects or hub.objects.path(oid).stat().st_size != size:
        raise Refused(404, f"Object {oid} was not uploaded")
    return JSONResponse({})
