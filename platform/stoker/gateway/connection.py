"""One HTTP/1.1 connection to an instance: a request, its answer as it comes, then the next.

llhttp parses (`httptools`, as in uvicorn). What a client library does beyond that for a request
costs three times what the rest of this hop costs, and each token comes this way (ARCHITECTURE.md,
decisions).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import httptools

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 3600.0  # between two pieces of an answer: a handler may compute for long
MAX_BUFFERED_BYTES = 256 << 10  # that nobody has read yet; the socket is left alone then

_HEAD = (
    b"POST %b HTTP/1.1\r\nhost: instance\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_INFORMATIONAL = range(100, 200)


class ConnectionBroken(Exception):
    """The connection ended, fell silent, or carried what is no HTTP, before the answer did."""


class Connection(asyncio.Protocol):
    """Made by `connect`; used by one request at a time. The methods named `on_*` are llhttp's."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._broken: ConnectionBroken | None = None
        self._pieces: list[bytes] = []
        self._buffered_bytes = 0
        self._paused = False
        self._status: int | None = None  # known once the headers are complete
        self._framed = False  # the headers say where the answer ends; else the connection's end is
        self._complete = True
        self._keep_alive = True
        self._transport: asyncio.Transport
        self.idle_since = self._loop.time()

    @property
    def reusable(self) -> bool:
        """Whether the last answer was read to its end and the connection may carry another."""
        read = self._complete and not self._pieces
        return read and self._keep_alive and not self._gone

    async def post(self, path: str, body: bytes) -> int:
        """Sends a JSON body; returns the status once the headers have come. The body is handed
        over whole, and the socket takes it at its own speed. Raises ConnectionBroken."""
        self._begin()
        if self._gone:
            raise self._broken or ConnectionBroken("it closed the connection")
        self._transport.write(_HEAD % (path.encode("ascii"), len(body)) + body)
        while self._status is None:
            await self._more()
        return self._status

    async def read(self) -> bytes:
        """What has come since the last call, at least a byte; nothing at the end of the answer.
        Raises ConnectionBroken, when all that came before has been read."""
        while not self._pieces:
            if self._complete:
                return b""
            await self._more()
        read = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._buffered_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return read

    def close(self) -> None:
        """Ends the connection at once; an instance that still computes stops."""
        self._transport.abort()

    @property
    def _gone(self) -> bool:
        """True as soon as the loop has seen the end, which it tells one turn later."""
        return self._broken is not None or self._transport.is_closing()

    def _begin(self) -> None:
        self._status, self._framed, self._complete = None, False, False

    async def _more(self) -> None:
        if self._broken is not None:
            raise self._broken
        self._waiter = self._loop.create_future()
        silence = self._loop.call_later(SILENCE_TIMEOUT_S, self._silent)
        try:
            await self._waiter
        finally:
            silence.cancel()
            self._waiter = None

    def _silent(self) -> None:
        self._break(f"it said nothing for {SILENCE_TIMEOUT_S:.0f} s")

    def _break(self, reason: str) -> None:
        if self._broken is None:
            self._broken = ConnectionBroken(reason)
        self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- asyncio ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"it sent what is no HTTP ({error})")
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._status is not None and not self._framed and error is None:
            self._complete = True
        self._break(str(error) if error else "it closed the connection")

    # --- llhttp -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._complete:
            self._break("it spoke without being asked")

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002
        if name.lower() in _FRAMING:
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status not in _INFORMATIONAL:
            self._status = status
            self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._buffered_bytes += len(piece)
        if self._buffered_bytes > MAX_BUFFERED_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._status is None:
            self._framed = False  # it was informational: the answer is still to come
            return
        self._complete = True
        self.idle_since = self._loop.time()


async def connect(socket: Path) -> Connection:
    """A connection to a Unix socket. Raises OSError, TimeoutError after CONNECT_TIMEOUT_S."""
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(Connection, str(socket))
    return connection
