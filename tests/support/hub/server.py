"""The thread that serves the stand-in on two free ports of 127.0.0.1."""

from __future__ import annotations

import socket
import threading
import time
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
    """A bound socket; it listens at once, so that no client comes too early."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    return listener


class Thread:
    """A uvicorn server in a thread of its own, until `stop`."""

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
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._listeners = listeners
        self._thread = threading.Thread(
            target=self._server.run, args=(listeners,), name="hub stand-in", daemon=True
        )
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the stand-in did not start")
            time.sleep(0.001)

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
        for listener in self._listeners:
            listener.close()
        if self._thread.is_alive():
            raise RuntimeError("the stand-in did not stop")
