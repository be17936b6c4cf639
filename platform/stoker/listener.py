"""uvicorn as a part of a larger program: its signals are ours, its readiness is an event."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from stoker.errors import Conflict

BACKLOG = 2048
KEEP_ALIVE_S = 75


class Listener(uvicorn.Server):
    """Serves one ASGI application on one socket until `stop` is called."""

    def __init__(self, app: ASGIApp, bound: socket.socket, drain_timeout_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="none",  # it runs in ours
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # nothing here depends on a client's address
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
            )
        )
        self._bound = bound
        self.listening = asyncio.Event()

    async def run_until_stopped(self) -> None:
        await self.serve(sockets=[self._bound])

    def stop(self) -> None:
        """Stops accepting; requests under way get the drain timeout."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind_tcp(host: str, port: int) -> socket.socket:
    """Binds a TCP socket; port 0 takes a free one.

    Raises Conflict when the port is taken or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise Conflict(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another address with --listen HOST:PORT"
        ) from error
    return bound


def bind_unix(path: Path) -> socket.socket:
    """Binds a Unix socket that only this user can connect to, replacing a dead one."""
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise Conflict(f"cannot listen on {path}: {error.strerror or error}") from error
    path.chmod(0o600)
    return bound
