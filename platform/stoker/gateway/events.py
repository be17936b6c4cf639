"""Server-sent events: the answer is held until its first event, and kept alive while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoker.errors import StokerError
from stoker.gateway.call import Call
from stoker.gateway.disconnect import ClientLeft, unless_left
from stoker.gateway.problems import InternalError, openai_error

MEDIA_TYPE = "text/event-stream"
HOLD_S = 15.0  # with the status line, so that an early failure has a proper status
PING_S = 15.0  # of silence, then a comment keeps proxies from cutting the stream
STALL_S = 60.0  # a client that takes no byte for so long has left

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

Emit = Callable[[bytes], Awaitable[None]]
Produce = Callable[[Emit], Awaitable[None]]

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the stream
]


def event(value: object) -> bytes:
    """One event that carries a JSON value."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


class EventStream(Response):
    """A response that streams what `produce` emits; each emit is one or more whole events, and
    returns when the connection has room for more, so a slow client slows its own instance's
    stream and holds no memory here.

    `produce` runs in one task from begin to end. What it raises before the status line is the
    response's error; later it becomes an error event, and `[DONE]` stays away. A client that
    leaves cancels it.
    """

    def __init__(
        self, call: Call, produce: Produce, *, hold_s: float = HOLD_S, ping_s: float = PING_S
    ) -> None:
        self.status_code = 200
        self.background = None
        self._call = call
        self._produce = produce
        self._hold_s = hold_s
        self._ping_s = ping_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await unless_left(receive, self.relay(send))

    async def relay(self, send: Send) -> None:
        """Streams to `send` without watching whether the client is there. Raises what came
        before the status line."""
        error: Exception | None = None
        wire = _Wire(send, self._hold_s, self._ping_s)
        async with wire.open():
            try:
                await self._produce(wire.write)
            except Exception as raised:  # noqa: BLE001  answered or raised again below
                error = raised
            answerable = not isinstance(error, ClientLeft) and (error is None or wire.begun)
            if answerable:
                await wire.write(self._broken(error) if error else b"", last=True)
        if error is not None and not (answerable and isinstance(error, StokerError)):
            raise error

    def _broken(self, error: Exception) -> bytes:
        failure = (
            error
            if isinstance(error, StokerError)
            else InternalError("the platform failed to go on; its log has the reason")
        )
        self._call.failure = failure
        return event(openai_error(failure, self._call.request_id))


class _Wire:
    """The way to one client: the status line goes with the first event, pings fill silences, and
    a client that takes nothing is given up.

    One timer watches over all of it and a write moves none: each token passes here, and the timer
    finds out when it ends what has become due.
    """

    def __init__(self, send: Send, hold_s: float, ping_s: float) -> None:
        self.begun = False
        self._send = send
        self._hold_s = hold_s
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._wrote_at = self._loop.time()
        self._writing_since: float | None = None
        self._pinging: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Watches while the context is open. Raises ClientLeft, and cancels what runs inside,
        when the client takes nothing for STALL_S."""
        try:
            async with asyncio.timeout(None) as self._bound, asyncio.TaskGroup() as self._tasks:
                self._timer = self._loop.call_at(self._wrote_at + self._hold_s, self._look)
                try:
                    yield
                finally:
                    self._timer.cancel()
                    if self._pinging is not None:
                        self._pinging.cancel()
        except TimeoutError:
            if self._bound.expired():
                raise ClientLeft from None
            raise

    async def write(self, chunk: bytes, *, last: bool = False) -> None:
        """Returns when the connection has room for more."""
        if self._pinging is not None:
            # It must not come between the status line and its event.
            await asyncio.wait({self._pinging})
            self._pinging = None
        await self._put(chunk, last=last)

    async def _put(self, chunk: bytes, *, last: bool = False) -> None:
        self._writing_since = self._loop.time()
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": chunk, "more_body": not last})
        self._wrote_at = self._loop.time()
        self._writing_since = None

    def _look(self) -> None:
        now = self._loop.time()
        if self._writing_since is not None:
            if now >= self._writing_since + STALL_S:
                self._bound.reschedule(now)
                return
            look_at = min(self._writing_since + STALL_S, now + self._ping_s)
        elif not self.begun or now >= self._wrote_at + self._ping_s:
            self._pinging = self._tasks.create_task(self._put(PING))
            look_at = now + self._ping_s
        else:
            look_at = self._wrote_at + self._ping_s
        self._timer = self._loop.call_at(look_at, self._look)
