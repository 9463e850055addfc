"""Which path leads to which endpoint, on the Hub and on its store of large files."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.hub import content, lfs, reading, writing, xet
from tests.support.hub.endpoint import Endpoint, Handler

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

API, REPO = "/api/models/{org}/{name}", "/{org}/{name}"
HUB: list[tuple[str, str, str, Handler]] = [
    ("GET", "/api/whoami-v2", "whoami", reading.whoami),
    ("GET", "/api/agent-harnesses", "harnesses", reading.harnesses),
    ("POST", "/api/validate-yaml", "validate_yaml", writing.validate_yaml),
    ("POST", "/api/repos/create", "create_repo", writing.create_repo),
    ("DELETE", "/api/repos/delete", "delete_repo", writing.delete_repo),
    ("POST", f"/api/complete_multipart{REPO}/{{oid}}", "lfs_complete", lfs.complete),
    ("GET", "/api/resolve-cache/models/{org}/{name}/{revision}/{file:path}", "", content.cached),
    ("GET", API, "info", reading.info),
    ("GET", API + "/revision/{revision}", "info", reading.info),
    ("GET", API + "/auth-check", "auth_check", reading.auth_check),
    ("GET", API + "/auth-check/write", "auth_check", reading.auth_check),
    ("GET", API + "/refs", "refs", reading.refs),
    ("GET", API + "/commits/{revision}", "commits", reading.commits),
    ("GET", API + "/tree/{revision}", "tree", reading.tree),
    ("GET", API + "/tree/{revision}/{file:path}", "tree", reading.tree),
    ("POST", API + "/paths-info/{revision}", "paths_info", reading.paths_info),
    ("PUT", API + "/settings", "settings", writing.settings),
    ("POST DELETE", API + "/branch/{revision}", "branch", writing.branch),
    ("POST DELETE", API + "/tag/{revision}", "tag", writing.tag),
    ("GET", API + "/xet-read-token/{revision}", "xet_token", xet.token),
    ("GET", API + "/xet-write-token/{revision}", "xet_token", xet.token),
    ("POST", API + "/preupload/{revision}", "preupload", writing.preupload),
    ("POST", API + "/commit/{revision}", "commit", writing.commit),
    ("POST", REPO + ".git/info/lfs/objects/batch", "lfs_batch", lfs.batch),
    ("POST", REPO + ".git/info/lfs/objects/verify", "lfs_verify", lfs.verify),
    ("GET", REPO + "/resolve/{revision}/{file:path}", "resolve", content.resolve),
]
STORE: list[tuple[str, str, str, Handler]] = [
    ("GET", REPO + "/{oid}", "download", content.download),
    ("PUT", REPO + "/{oid}", "upload", lfs.upload),
]


def application(hub: Hub) -> ASGIApp:
    """Both hosts as one ASGI application; the port says which of the two is meant."""
    apps = {hub.hub_port: _router(hub, HUB), hub.store_port: _router(hub, STORE)}

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        # Names are matched while still quoted, because a revision may hold a slash (refs%2Fpr%2F1);
        # HfFileSystem leaves that one unquoted.
        path = scope["raw_path"].decode()
        scope["path"] = re.sub(r"/refs/(pr|convert)/([^/]+)/", r"/refs%2F\1%2F\2/", path)
        await apps[scope["server"][1]](scope, receive, send)

    return application


def _router(hub: Hub, table: list[tuple[str, str, str, Handler]]) -> Router:
    routes = [
        Route(path, Endpoint(hub, kind or "download", handler), methods=methods.split())
        for methods, path, kind, handler in table
    ]
    unknown = Endpoint(hub, "unknown", _unknown)
    return Router(routes, redirect_slashes=False, default=unknown)


async def _unknown(hub: Hub, request: object, entry: object) -> JSONResponse:
    return JSONResponse({"error": "the stand-in has no such endpoint"}, 501)
