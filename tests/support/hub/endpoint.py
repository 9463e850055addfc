"""One endpoint as an ASGI application: it logs the exchange, lets faults bend it, and answers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tests.support.hub.access import USERS, Refused
from tests.support.hub.effects import Dropped, Effect, Exchange
from tests.support.hub.log import Entry

if TYPE_CHECKING:
    from tests.support.hub.hub import Hub

Handler = Callable[["Hub", Request, Entry], Awaitable[Response]]
RANGE = re.compile(r"bytes=(\d+)-(\d*)$")


class Endpoint:
    """`kind` names the endpoint in the log and in faults."""

    def __init__(self, hub: Hub, kind: str, handler: Handler) -> None:
        self.hub, self.kind, self.handler = hub, kind, handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        entry = self._entry(request)
        self.hub.log.entries.append(entry)
        effects = self.hub.effects(entry)
        exchange = Exchange(request, entry, *_counted(entry, receive, send))
        with contextlib.suppress(Dropped, ClientDisconnect):
            await self._answer(exchange, effects)

    def _entry(self, request: Request) -> Entry:
        values = {name: unquote(value) for name, value in request.path_params.items()}
        request.scope["path_params"] = values
        query = request.query_params
        kind = "resolve" if request.method == "HEAD" else self.kind
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        return Entry(
            kind,
            request.method,
            unquote(request.scope["path"]),
            repo=f"{values['org']}/{values['name']}" if "name" in values else query.get("repo", ""),
            file=values.get("file", "") or query.get("file", "") or values.get("oid", ""),
            part=query.get("part", ""),
            revision=values.get("revision", ""),
            range=_range(request.headers.get("range")),
            user=USERS[token].name if token in USERS else None,
        )

    async def _answer(self, exchange: Exchange, effects: list[Effect]) -> None:
        for effect in effects:
            effect.bend(exchange)
        for effect in effects:
            await effect.before(exchange)
            if exchange.entry.status:
                return
        request = Request(exchange.request.scope, exchange.receive)
        try:
            response = await self.handler(self.hub, request, exchange.entry)
        except Refused as refusal:
            response = refusal.response()
        for effect in effects:
            await effect.after(exchange)
        await response(request.scope, exchange.receive, exchange.send)


def _range(header: str | None) -> tuple[int, int | None] | None:
    """First byte and the byte after the last, of a header that asks for one range."""
    found = RANGE.match(header or "")
    return (int(found[1]), int(found[2]) + 1 if found[2] else None) if found else None


def _counted(entry: Entry, receive: Receive, send: Send) -> tuple[Any, Any]:
    """`send` and `receive` that write into the log what moved.

    The log is written first: a test that has an answer shall find it in the log.
    """

    length: int | None = None

    async def counted_send(message: Message) -> None:
        nonlocal length
        if message["type"] == "http.response.start":
            entry.status = message["status"]
            found = [int(v) for k, v in message["headers"] if k == b"content-length"]
            length = 0 if entry.method == "HEAD" else found[0] if found else None
        else:
            entry.sent += len(message.get("body", b"")) if entry.method != "HEAD" else 0
        last = message["type"] == "http.response.body" and not message.get("more_body")
        entry.complete = last if length is None else entry.sent >= length
        await send(message)

    async def counted_receive() -> Message:
        message = await receive()
        entry.received += len(message.get("body", b""))
        return message

    return counted_send, counted_receive
