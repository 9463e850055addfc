"""Endpoints that change repositories: create, branch, tag, and the steps of a commit."""

from __future__ import annotations

import base64
import fnmatch
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.hub import access
from tests.support.hub.access import Refused
from tests.support.hub.log import Entry
from tests.support.hub.reading import missing
from tests.support.hub.repos import Blob, Commit, Repository, goes_large

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

Json = dict[str, Any]


def writable(hub: Hub, request: Request, entry: Entry) -> Repository:
    """The repository that a request may change."""
    user = access.caller(request)
    repository = access.visible(hub.repositories, entry.repo, user)
    access.check_write(repository, user)
    return repository


async def create_repo(hub: Hub, request: Request, entry: Entry) -> Response:
    user, asked = access.caller(request), await request.json()
    if user.name is None:
        raise Refused(401, "Invalid username or password.")
    owner = asked.get("organization") or user.name
    entry.repo = name = f"{owner}/{asked['name']}"
    if owner not in user.namespaces or user.role != "write":
        text = f'You don\'t have the rights to create a model under the namespace "{owner}"'
        raise Refused(403, text)
    url = f"{hub.url}/{name}"
    if name in hub.repositories:
        error = "You already created this model repo"
        headers = {"X-Error-Message": error}
        return JSONResponse({"error": error, "url": url}, 409, headers)
    private = asked.get("visibility") == "private" or asked.get("private") is True
    hub.create(name, private=private)
    return JSONResponse({"url": url, "name": name, "id": f"id-of-{name}"})


async def delete_repo(hub: Hub, request: Request, entry: Entry) -> Response:
    asked = await request.json()
    owner = asked.get("organization") or access.caller(request).name
    entry.repo = f"{owner}/{asked['name']}"
    writable(hub, request, entry)
    del hub.repositories[entry.repo]
    return Response()


async def settings(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, asked = writable(hub, request, entry), await request.json()
    repository.gated = asked.get("gated", repository.gated)
    if "visibility" in asked or "private" in asked:
        repository.private = asked.get("private", asked.get("visibility") == "private")
    return JSONResponse({"private": repository.private, "gated": repository.gated})


async def branch(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, ref = writable(hub, request, entry), f"refs/heads/{entry.revision}"
    if request.method == "DELETE":
        return _forget(repository, ref)
    asked = await request.json()
    if ref in repository.refs:
        raise Refused(409, f"Reference already exists: {ref}")
    start = access.commit_of(repository, asked.get("startingPoint", "main"))
    repository.refs[ref] = start.oid
    return Response()


async def tag(hub: Hub, request: Request, entry: Entry) -> Response:
    repository = writable(hub, request, entry)
    if request.method == "DELETE":
        return _forget(repository, f"refs/tags/{entry.revision}")
    ref = f"refs/tags/{(await request.json())['tag']}"
    if ref in repository.refs:
        raise Refused(409, f"Tag reference exists already: {ref}")
    repository.refs[ref] = access.commit_of(repository, entry.revision).oid
    return Response()


def _forget(repository: Repository, ref: str) -> Response:
    if repository.refs.pop(ref, None) is None:
        raise Refused(404, f"Reference does not exist: {ref}", "RevisionNotFound")
    return Response()


async def validate_yaml(hub: Hub, request: Request, entry: Entry) -> Response:
    """The metadata of a model card must be YAML; a card without any gets a warning."""
    parts = (await request.json())["content"].split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return JSONResponse({"warnings": [{"message": "empty or missing yaml metadata"}]})
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError as e:
        return JSONResponse({"errors": [{"message": str(e)}], "warnings": []}, 400)
    if not isinstance(found, dict):
        return JSONResponse({"errors": [{"message": "metadata must be a mapping"}]}, 400)
    return JSONResponse({"errors": [], "warnings": []})


async def preupload(hub: Hub, request: Request, entry: Entry) -> Response:
    """Which files go large, and what lies at their paths now."""
    repository = _target(hub, request, entry)
    commit = access.commit_of(repository, entry.revision)
    rules = commit.files.get(".gitattributes", Blob.of(b"")).data
    ignored = commit.files.get(".gitignore", Blob.of(b"")).data.decode().split()
    answer = []
    for file in (await request.json())["files"]:
        path, sample = file["path"], base64.b64decode(file["sample"])
        large = goes_large(path, file["size"], sample, rules)
        mode = {
            "path": path,
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": _named_by(path, ignored),
        }
        there = commit.files.get(path)
        answer.append(mode | ({"oid": there.etag} if there else {}))
    return JSONResponse({"files": answer})


def _named_by(path: str, globs: list[str]) -> bool:
    """Whether a .gitignore of plain globs names a file."""
    return any(fnmatch.fnmatchcase(part, glob) for part in path.split("/") for glob in globs)


def _target(hub: Hub, request: Request, entry: Entry) -> Repository:
    """The repository of a commit: a pull request needs no right but to read."""
    if "create_pr" not in request.query_params:
        return writable(hub, request, entry)
    user = access.caller(request)
    if user.name is None or user.role != "write":
        raise Refused(401 if user.name is None else 403, "Invalid username or password.")
    return access.visible(hub.repositories, entry.repo, user)


async def commit(hub: Hub, request: Request, entry: Entry) -> Response:
    repository, user = _target(hub, request, entry), access.caller(request)
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    head, ref = access.commit_of(repository, entry.revision), repository.branch(entry.revision)
    pull = "create_pr" in request.query_params
    if ref is None and not pull:
        raise Refused(404, f"Invalid rev id: {entry.revision}", "RevisionNotFound")
    expected = header.get("parentCommit")
    if expected is not None and not head.oid.startswith(expected):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    number = sum(name.startswith("refs/pr/") for name in repository.refs) + 1
    files = _changed(hub, repository, head, [line for line in lines if line["key"] != "header"])
    made = repository.commit(
        f"refs/pr/{number}" if pull or ref is None else ref,
        files,
        header["summary"],
        parent=head.oid,
        description=header.get("description", ""),
        author=str(user.name),
    )
    entry.commit = made.oid
    url = f"{hub.url}/{repository.id}"
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}"}
    if pull:
        answer["pullRequestUrl"] = f"{url}/discussions/{number}"
    return JSONResponse(answer)


def _changed(
    hub: Hub, repository: Repository, head: Commit, operations: list[Json]
) -> dict[str, Blob]:
    """The tree after the operations of a commit."""
    files = dict(head.files)
    for operation in operations:
        value, path = operation["value"], operation["value"]["path"]
        if operation["key"] == "file":
            files[path] = Blob.of(base64.b64decode(value["content"]))
        elif operation["key"] == "lfsFile":
            files[path] = _pointed(hub, repository, value)
        else:
            folder = operation["key"] == "deletedFolder"
            for gone in list(_named(files, path, folder, head)):
                del files[gone]
    return files


def _pointed(hub: Hub, repository: Repository, value: Json) -> Blob:
    blob = Blob.large(value["oid"], value["size"])
    if value["oid"] not in repository.objects and hub.xet_hash(blob) is None:
        text = "Your push was rejected because an LFS pointer pointed to a file that does not exist"
        raise Refused(400, f"{text}: {value['path']}")
    repository.objects.add(value["oid"])
    return blob


def _named(files: dict[str, Blob], path: str, folder: bool, head: Commit) -> Iterator[str]:
    prefix = path.rstrip("/") + "/"
    found = [p for p in files if p.startswith(prefix)] if folder else [path]
    if not found or not all(p in files for p in found):
        refusal = missing(path, head)
        raise Refused(404, "A file with this name doesn't exist", **refusal.headers)
    yield from found
