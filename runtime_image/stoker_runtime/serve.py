"""Serves the application on the Unix socket until told to stop, then drains to a deadline."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvloop
from starlette.applications import Starlette
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from stoker_runtime.app import build_app
from stoker_runtime.instance import Instance
from stoker_runtime.worker import ExitCode, WorkerOptions

BACKLOG = 512  # connections that wait to be accepted
CANCEL_S = 2  # what a cancelled request gets to clean up after itself

LOG = logging.getLogger(__name__)


def serve(options: WorkerOptions, on_listening: Callable[[], None]) -> ExitCode:
    """Runs the worker until SIGTERM or a failed load; `on_listening` is called once it listens."""
    try:
        return uvloop.run(_serve(options, on_listening))
    finally:
        Path(options.socket_path).unlink(missing_ok=True)


async def _serve(options: WorkerOptions, on_listening: Callable[[], None]) -> ExitCode:
    stop = asyncio.Event()
    code = ExitCode.DRAINED

    def load_failed() -> None:
        nonlocal code
        code = ExitCode.LOAD_FAILED
        stop.set()

    for told in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(told, stop.set)
    async with asyncio.TaskGroup() as tasks:
        instance = Instance(tasks, load_failed)
        listener = _listen(options.socket_path)
        server = UnixServer(build_app(instance), listener)
        await server.start()
        on_listening()
        await stop.wait()
        LOG.info("draining")
        await server.drain(options.drain_s)
        await instance.close()
    return code


def _listen(path: str) -> socket.socket:
    """A socket that only this user can connect to, from its first moment."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    return listener


class _Connection(HttpToolsProtocol):
    """uvicorn's protocol, that says when the last connection has gone."""

    idle: asyncio.Event

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.connections:
            self.idle.set()


class UnixServer:
    """uvicorn's HTTP/1.1 on a socket of ours; its own `Server` ticks and polls, this one waits."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        self._config = Config(
            app,
            loop="none",
            http=_Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
        )
        self._config.load()
        self._listener = listener
        self._state = ServerState()
        self._idle = asyncio.Event()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Accepts connections from now on."""
        self._server = await asyncio.get_running_loop().create_unix_server(
            self._connection, sock=self._listener, backlog=BACKLOG
        )

    async def drain(self, drain_s: float) -> None:
        """Accepts no more, lets requests under way end, and cancels those left at the deadline."""
        assert self._server is not None, "start comes before drain"
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(drain_s):
                await self._last_connection()
        except TimeoutError:
            late = set(self._state.tasks)
            LOG.warning("cancelling %d requests at the drain deadline", len(late))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CANCEL_S)

    async def _last_connection(self) -> None:
        if self._state.connections:
            self._idle.clear()
            await self._idle.wait()

    def _connection(self) -> _Connection:
        connection = _Connection(config=self._config, server_state=self._state, app_state={})
        connection.idle = self._idle
        return connection
