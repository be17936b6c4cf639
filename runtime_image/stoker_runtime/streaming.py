"""Newline-delimited JSON answers: batched writes, bounded buffers, cancelled by a disconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from stoker_runtime.contract import STREAM_MEDIA_TYPE, Message
from stoker_runtime.errors import EngineFailed, RuntimeFault

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
    HTTP error. A later fault becomes the stream's last line through `last_words`.

    Raises:
        RuntimeFault: the maker raised it before its first line.
    """

    def __init__(self, lines: Lines, last_words: Callable[[RuntimeFault], Message]) -> None:
        self._lines = lines
        self._last_words = last_words

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
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
        if fault is not None:
            raise fault

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
        started = False
        ended = False
        while not ended:
            item = await made.get()
            batch = bytearray()
            while True:
                if item is None:
                    ended = True
                    break
                if isinstance(item, RuntimeFault):
                    if not started and not batch:
                        return item
                    item = line_of(self._last_words(item))
                batch += item
                if made.empty() or len(batch) >= MAX_BATCH_BYTES:
                    break
                item = made.get_nowait()
            if not started:
                await send(_START)
                started = True
            await send({"type": "http.response.body", "body": bytes(batch), "more_body": not ended})
        return None


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", STREAM_MEDIA_TYPE.encode())],
}


class _ClientLeft(Exception):  # noqa: N818  not an error: it cancels the stream's task group
    pass


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeft
