"""Server-sent events: the answer is held until its first event, and kept alive while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

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
MAX_UNSENT_CHUNKS = 64  # then the instance's stream waits for the client

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
    """A response that streams what `produce` emits; each emit is one or more whole events.

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
        chunks: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MAX_UNSENT_CHUNKS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run(chunks))
            error = await self._write(chunks, send)
        if error is not None:
            raise error

    async def _run(self, chunks: asyncio.Queue[bytes | Exception | None]) -> None:
        try:
            await self._produce(chunks.put)
        except Exception as error:  # noqa: BLE001  raised again by the task that answers
            await chunks.put(error)
        else:
            await chunks.put(None)

    async def _write(
        self, chunks: asyncio.Queue[bytes | Exception | None], send: Send
    ) -> Exception | None:
        """Writes until the end; returns the error that is still to be answered or logged."""
        first = await _within(chunks, self._hold_s)
        if isinstance(first, Exception):
            return first
        await _send(send, {"type": "http.response.start", "status": 200, "headers": _HEADERS})
        chunk: bytes | Exception | None = first
        while isinstance(chunk, bytes):
            await _send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
            chunk = await _within(chunks, self._ping_s)
        last = b"" if chunk is None else self._broken(chunk)
        await _send(send, {"type": "http.response.body", "body": last, "more_body": False})
        return None if isinstance(chunk, StokerError) else chunk

    def _broken(self, error: Exception) -> bytes:
        failure = (
            error
            if isinstance(error, StokerError)
            else InternalError("the platform failed to go on; its log has the reason")
        )
        self._call.failure = failure
        return event(openai_error(failure, self._call.request_id))


async def _within(
    chunks: asyncio.Queue[bytes | Exception | None], timeout_s: float
) -> bytes | Exception | None:
    """The next chunk, or a ping when none comes in time."""
    if not chunks.empty():
        return chunks.get_nowait()
    try:
        async with asyncio.timeout(timeout_s):
            return await chunks.get()
    except TimeoutError:
        return PING


async def _send(send: Send, message: dict[str, object]) -> None:
    try:
        async with asyncio.timeout(STALL_S):
            await send(message)
    except TimeoutError:
        raise ClientLeft from None
