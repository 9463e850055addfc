"""Endpoints that read: who am I, repositories, trees, refs, history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.hub import access
from tests.support.hub.access import Refused
from tests.support.hub.log import Entry
from tests.support.hub.repos import Blob, Commit, Repository, pointer

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

Json = dict[str, Any]


async def whoami(hub: Hub, request: Request, entry: Entry) -> Response:
    user = access.caller(request)
    if user.name is None:
        raise Refused(401, "Invalid username or password.")
    return JSONResponse(access.whoami(user))


async def harnesses(hub: Hub, request: Request, entry: Entry) -> Response:
    """The client asks once a day which agents exist, to name itself."""
    return JSONResponse({"standard": [], "agents": []})


async def auth_check(hub: Hub, request: Request, entry: Entry) -> Response:
    user = access.caller(request)
    repository = access.visible(hub.repositories, entry.repo, user)
    access.check_gate(repository, user)
    if request.scope["path"].endswith("/write"):
        access.check_write(repository, user)
    return JSONResponse({})


def opened(hub: Hub, request: Request, entry: Entry) -> tuple[Repository, Commit]:
    """What a request to read may see. Names and sizes are public in a gated repository too."""
    repository = access.visible(hub.repositories, entry.repo, access.caller(request))
    return repository, access.commit_of(repository, entry.revision or "main")


async def info(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, commit = opened(hub, request, entry)
    blobs = request.query_params.get("blobs", "").lower() in ("true", "1")
    card = _card(commit)
    oldest = list(repository.history(commit.oid))[-1]
    answer: Json = {
        "_id": f"id-of-{repository.id}",
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.owner,
        "sha": commit.oid,
        "lastModified": _date(commit.date),
        "createdAt": _date(oldest.date),
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*card.get("tags", []), *_implied_tags(card)],
        "siblings": [_sibling(path, blob, blobs) for path, blob in sorted(commit.files.items())],
        "spaces": [],
        "usedStorage": sum(b.size for b in commit.files.values()),
    }
    if card:
        answer |= {"cardData": card, "library_name": card.get("library_name")}
    if expand := request.query_params.getlist("expand"):
        answer = {key: answer.get(key) for key in ("_id", "id", *expand)}
    return JSONResponse(answer)


def _sibling(path: str, blob: Blob, blobs: bool) -> Json:
    found: Json = {"rfilename": path}
    if blobs:
        found |= {"blobId": blob.oid, "size": blob.size}
        if blob.sha256:
            found["lfs"] = _pointer(blob, "sha256")
    return found


def _pointer(blob: Blob, digest: str) -> Json:
    assert blob.sha256 is not None
    size = len(pointer(blob.sha256, blob.size))
    return {digest: blob.sha256, "size": blob.size, "pointerSize": size}


def _card(commit: Commit) -> Json:
    """The metadata of the model card, as the Hub reads it."""
    readme = commit.files.get("README.md")
    parts = readme.data.decode().split("---\n", 2) if readme else []
    found = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    return found if isinstance(found, dict) else {}


def _implied_tags(card: Json) -> list[str]:
    bases = card.get("base_model") or []
    bases = [bases] if isinstance(bases, str) else bases
    relation = card.get("base_model_relation")
    tags = [f"base_model:{base}" for base in bases]
    tags += [f"base_model:{relation}:{base}" for base in bases if relation]
    return tags + ([f"license:{card['license']}"] if "license" in card else [])


def _date(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _file(hub: Hub, path: str, blob: Blob) -> Json:
    found: Json = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.sha256:
        found["lfs"] = _pointer(blob, "oid")
    if xet_hash := hub.xet_hash(blob):
        found["xetHash"] = xet_hash
    return found


def _folder(path: str) -> Json:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}


def _below(hub: Hub, commit: Commit, folder: str, recursive: bool) -> Iterator[Json]:
    """Files and folders in `folder` ("" or "a/b/"), or everything below it."""
    seen: set[str] = set()
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(folder):
            continue
        steps = path[len(folder) :].split("/")
        for depth in range(1, len(steps)):
            parent = folder + "/".join(steps[:depth])
            if parent not in seen and (recursive or depth == 1):
                yield _folder(parent)
            seen.add(parent)
        if recursive or len(steps) == 1:
            yield _file(hub, path, blob)


async def tree(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, commit = opened(hub, request, entry)
    query = request.query_params
    folder = f"{entry.file}/" if entry.file else ""
    found = list(_below(hub, commit, folder, query.get("recursive", "").lower() in ("true", "1")))
    if folder and not found:
        raise missing(entry.file, commit)
    if query.get("expand", "").lower() in ("true", "1"):
        found = [item | {"lastCommit": _last(repository, commit, item["path"])} for item in found]
    start = int(query.get("cursor", "0"))
    page, headers = found[start : start + hub.page_size], {}
    if start + hub.page_size < len(found):
        following = urlencode({**query, "cursor": start + hub.page_size})
        headers["Link"] = f'<{hub.url}{request.scope["path"]}?{following}>; rel="next"'
    return JSONResponse(page, headers=headers)


def missing(path: str, commit: Commit) -> Refused:
    return Refused(404, f"Entry not found: {path}", "EntryNotFound", X_Repo_Commit=commit.oid)


def _last(repository: Repository, commit: Commit, path: str) -> Json:
    """The last commit that touched a file, or a file below a folder."""

    def content(of: Commit | None) -> list[tuple[str, Blob]]:
        files = of.files.items() if of else ()
        return [(p, b) for p, b in files if p == path or p.startswith(f"{path}/")]

    for later in repository.history(commit.oid):
        earlier = repository.commits.get(later.parent or "")
        if content(later) != content(earlier):
            return {"id": later.oid, "title": later.title, "date": _date(later.date)}
    raise AssertionError(f"no commit made {path}")


async def paths_info(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, commit = opened(hub, request, entry)
    asked = parse_qs((await request.body()).decode())
    found = []
    for path in asked.get("paths", []):
        if path in commit.files:
            found.append(_file(hub, path, commit.files[path]))
        elif any(p.startswith(f"{path}/") for p in commit.files):
            found.append(_folder(path))
    if asked.get("expand", [""])[0].lower() in ("true", "1"):
        found = [item | {"lastCommit": _last(repository, commit, item["path"])} for item in found]
    return JSONResponse(found)


async def refs(hub: Hub, request: Request, entry: Entry) -> Response:
    repository = access.visible(hub.repositories, entry.repo, access.caller(request))

    def named(prefix: str) -> list[Json]:
        return [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repository.refs.items()
            if ref.startswith(prefix)
        ]

    found = {"branches": named("refs/heads/"), "tags": named("refs/tags/"), "converts": []}
    if "include_prs" in request.query_params:
        found["pullRequests"] = named("refs/pr/")
    return JSONResponse(found)


async def commits(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, commit = opened(hub, request, entry)
    return JSONResponse(
        [
            {
                "id": c.oid,
                "title": c.title,
                "message": c.description,
                "authors": [{"user": c.author}],
                "date": _date(c.date),
            }
            for c in repository.history(commit.oid)
        ]
    )
