"""Newline-delimited JSON answers: batched writes, bounded buffers, cancelled by a disconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from stoker_runtime.contract import STREAM_MEDIA_TYPE, Message
from stoker_runtime.errors import EngineFailed, Overloaded, RuntimeFault

MAX_BUFFERED_LINES = 256  # lines made but not yet written; then the maker waits
MAX_BATCH_BYTES = 256 * 1024  # one write

LOG = logging.getLogger(__name__)

Lines = AsyncGenerator[bytes, None]
"""Complete lines, each with its line feed."""


def line_of(message: Message) -> bytes:
    """The message as it goes over the wire in a stream."""
    return message.model_dump_json().encode() + b"\n"


class LineStream:
    """An ASGI response that streams lines until their maker ends or the client leaves.

    The status line waits for the first line, so that a fault which comes instead is still an
    HTTP error. A later fault becomes the stream's last line through `last_words`, and so does
    being cancelled from outside, which is what a drain does at its deadline.

    Raises:
        RuntimeFault: the maker raised it before its first line.
    """

    def __init__(
        self,
        lines: Lines,
        last_words: Callable[[RuntimeFault], Message],
        media_type: str = STREAM_MEDIA_TYPE,
    ) -> None:
        self._lines = lines
        self._last_words = last_words
        self._media_type = media_type
        self._started = False

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            fault = await self._stream(receive, send)
        except asyncio.CancelledError:  # the drain's deadline has passed
            fault = Overloaded("this worker has stopped; ask again", code="worker_stopped")
            if self._started:
                await self._send(send, line_of(self._last_words(fault)), more=False)
                return
        if fault is not None:
            raise fault

    async def _stream(self, receive: Receive, send: Send) -> RuntimeFault | None:
        made: asyncio.Queue[bytes | RuntimeFault | None] = asyncio.Queue(MAX_BUFFERED_LINES)
        fault: RuntimeFault | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make(made), name="stream-maker")
                watch = group.create_task(_watch(receive), name="stream-watch")
                fault = await self._write(made, send)
                watch.cancel()
        except* _ClientLeft:
            LOG.info("client left")
        return fault

    async def _make(self, made: asyncio.Queue[bytes | RuntimeFault | None]) -> None:
        try:
            async with aclosing(self._lines) as lines:
                async for line in lines:
                    await made.put(line)
        except RuntimeFault as fault:
            await made.put(fault)
        except Exception:
            LOG.exception("a stream broke")
            await made.put(EngineFailed("the engine broke; the worker's log has the traceback"))
        await made.put(None)

    async def _write(
        self, made: asyncio.Queue[bytes | RuntimeFault | None], send: Send
    ) -> RuntimeFault | None:
        """Writes until the end; returns the fault that came instead of the first line."""
        ended = False
        while not ended:
            item = await made.get()
            batch = bytearray()
            while True:
                if item is None:
                    ended = True
                    break
                if isinstance(item, RuntimeFault):
                    if not self._started and not batch:
                        return item
                    item = line_of(self._last_words(item))
                batch += item
                if made.empty() or len(batch) >= MAX_BATCH_BYTES:
                    break
                item = made.get_nowait()
            await self._send(send, bytes(batch), more=not ended)
        return None

    async def _send(self, send: Send, body: bytes, *, more: bool) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", self._media_type.encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})


class _ClientLeft(Exception):
    pass


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeft
