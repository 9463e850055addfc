"""What can go wrong with a request: each effect bends one exchange between client and server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Message

from tests.support.hub.log import Entry

Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]


class Dropped(Exception):
    """The connection was broken off: nothing more can be sent."""


@dataclass
class Exchange:
    """One request on its way through the server, as effects see and bend it."""

    request: Request
    entry: Entry
    send: Send
    receive: Receive

    async def drop(self) -> None:
        """Break the connection off, without a word."""
        self.request.scope["state"]["transport"]().abort()
        await asyncio.sleep(0)
        raise Dropped

    async def close(self) -> None:
        """Send what was written so far, then close the connection in mid-answer."""
        self.request.scope["state"]["transport"]().close()
        await asyncio.sleep(0)
        raise Dropped


class Effect:
    """What a fault does. The default of every hook is to do nothing."""

    async def before(self, exchange: Exchange) -> None:
        """Act before the request is looked at; send an answer to stop here."""

    def bend(self, exchange: Exchange) -> None:
        """Wrap `exchange.send` or `exchange.receive`."""

    async def after(self, exchange: Exchange) -> None:
        """Act when the request was carried out and its answer not yet sent."""


@dataclass
class Status(Effect):
    """Answer with a status instead of carrying the request out."""

    code: int
    message: str = "the stand-in was told to fail"
    retry_after: int | None = None
    error_code: str | None = None

    async def before(self, exchange: Exchange) -> None:
        headers = {"X-Error-Message": self.message}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.error_code is not None:
            headers["X-Error-Code"] = self.error_code
        response = JSONResponse({"error": self.message}, self.code, headers)
        await response(exchange.request.scope, exchange.receive, exchange.send)


class Drop(Effect):
    """Break the connection off instead of answering; nothing is carried out."""

    async def before(self, exchange: Exchange) -> None:
        await exchange.drop()


class LoseAnswer(Effect):
    """Carry the request out, then break the connection off: the caller cannot know."""

    async def after(self, exchange: Exchange) -> None:
        await exchange.drop()


@dataclass
class Wait(Effect):
    """Answer late."""

    seconds: float

    async def before(self, exchange: Exchange) -> None:
        await asyncio.sleep(self.seconds)


@dataclass
class Do(Effect):
    """Call a function before the request is carried out: move a branch, change a right, …"""

    function: Callable[[], Any]

    async def before(self, exchange: Exchange) -> None:
        self.function()


@dataclass
class Cut(Effect):
    """Close the connection after `after` bytes of the answer's body."""

    after_bytes: int

    def bend(self, exchange: Exchange) -> None:
        send, left = exchange.send, self.after_bytes

        async def cut(message: Message) -> None:
            nonlocal left
            if message["type"] == "http.response.start":
                await send(message)
                return
            body = message.get("body", b"")
            last = not message.get("more_body")
            if len(body) < left or (last and len(body) == left):
                left -= len(body)
                await send(message)
                return
            await send({**message, "body": body[:left], "more_body": True})
            await exchange.close()

        exchange.send = cut


@dataclass
class CutUpload(Effect):
    """Break the connection off after about `after` bytes of the request's body."""

    after_bytes: int

    def bend(self, exchange: Exchange) -> None:
        receive, taken = exchange.receive, 0

        async def cut() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken >= self.after_bytes:
                await exchange.drop()
            return message

        exchange.receive = cut


@dataclass
class Slow(Effect):
    """Send the answer's body at so many bytes a second."""

    bytes_per_second: float

    def bend(self, exchange: Exchange) -> None:
        send = exchange.send

        async def slow(message: Message) -> None:
            body = message.get("body", b"")
            piece = max(1, int(self.bytes_per_second / 50))
            for start in range(0, len(body), piece):
                part = body[start : start + piece]
                await send({"type": "http.response.body", "body": part, "more_body": True})
                await asyncio.sleep(len(part) / self.bytes_per_second)
            if message["type"] != "http.response.body":
                await send(message)
            elif not message.get("more_body"):
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        exchange.send = slow


@dataclass
class WrongBytes(Effect):
    """Flip bits of `count` bytes from byte `at` of the file on; the size stays right."""

    at: int = 0
    count: int = 1

    def bend(self, exchange: Exchange) -> None:
        send, position = exchange.send, exchange.entry.range[0] if exchange.entry.range else 0

        async def wrong(message: Message) -> None:
            nonlocal position
            body = bytearray(message.get("body", b""))
            first, last = self.at - position, self.at + self.count - position
            for i in range(max(0, first), min(len(body), last)):
                body[i] ^= 0xFF
            position += len(body)
            await send({**message, "body": bytes(body)} if body else message)

        exchange.send = wrong


class IgnoreRange(Effect):
    """Send the whole file with status 200 although a range was asked, as some caches do."""

    async def before(self, exchange: Exchange) -> None:
        headers = exchange.request.scope["headers"]
        exchange.request.scope["headers"] = [h for h in headers if h[0] != b"range"]
        exchange.entry.range = None


@dataclass
class ShortRange(Effect):
    """Answer a range with fewer bytes than asked, in headers that agree with each other."""

    missing: int = 1

    async def before(self, exchange: Exchange) -> None:
        asked = exchange.entry.range
        if asked is None or asked[1] is None or asked[1] - self.missing <= asked[0]:
            return
        value = f"bytes={asked[0]}-{asked[1] - self.missing - 1}".encode()
        headers = exchange.request.scope["headers"]
        kept = [h for h in headers if h[0] != b"range"]
        exchange.request.scope["headers"] = [*kept, (b"range", value)]


@dataclass
class RefuseObject(Effect):
    """Let the LFS batch endpoint refuse every object, as it does when a quota is used up."""

    code: int = 422
    message: str = "the storage quota is used up"

    async def before(self, exchange: Exchange) -> None:
        exchange.request.state.refusal = {"code": self.code, "message": self.message}
