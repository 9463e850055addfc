"""The thread that serves the stand-in on two free ports of 127.0.0.1."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Lets an endpoint reach its connection, so that a fault can break it off."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app_state = {**self.app_state, "transport": lambda: self.transport}


def free_port() -> socket.socket:
    """A bound socket; it listens at once, so that no client comes too early.

    asyncio sends small answers without delay only where the socket says that it speaks TCP;
    else head and body of an answer are 40 ms apart, which no server of files does.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    listener.setblocking(False)
    return listener


class Server(uvicorn.Server):
    """uvicorn without its clock: it stops when told, not at its next tick of 0.1 s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running, self._stopped = threading.Event(), asyncio.Event()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.running.set()
        await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # What was accepted first becomes a connection: asyncio cannot make one for a server that
        # was closed in between, and leaves the socket open and a transport without an owner.
        for server in self.servers:
            for listener in server.sockets:
                self._loop.remove_reader(listener.fileno())
        for _ in range(5):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)


class Thread:
    """A server in a thread of its own, until `stop`."""

    def __init__(self, application: ASGIApp, listeners: list[socket.socket]) -> None:
        config = uvicorn.Config(
            application,
            http=Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
        )
        self._server, self._listeners = Server(config), listeners
        self._thread = threading.Thread(
            target=self._server.run, args=(listeners,), name="hub stand-in", daemon=True
        )
        self._thread.start()
        if not self._server.running.wait(10):
            raise RuntimeError("the stand-in did not start")

    def stop(self) -> None:
        """Break all connections off and end the thread; again does nothing."""
        if not self._thread.is_alive():
            return
        self._server.stop()
        self._thread.join(10)
        for listener in self._listeners:
            listener.close()
        if self._thread.is_alive():
            raise RuntimeError("the stand-in did not stop")
