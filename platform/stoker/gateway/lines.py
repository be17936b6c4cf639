"""Text that grows: lines to a client for as long as it listens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stoker.gateway.disconnect import unless_left

_HEADERS = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-cache")]


class TextStream(Response):
    """Streams lines as they come; closes their source when the client leaves."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.status_code = 200
        self.background = None
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await unless_left(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        async with AsyncExitStack() as closing:
            if isinstance(self._lines, AsyncGenerator):
                closing.push_async_callback(self._lines.aclose)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            async for line in self._lines:
                body = line.rstrip("\n").encode() + b"\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
