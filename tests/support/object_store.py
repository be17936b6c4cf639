"""A real HTTP server with ranges, one object, and the faults that a test asks for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 256 << 10
FEW_BYTES = 1000


@dataclass
class Asked:
    """One request as it came."""

    first: int
    last: int
    if_match: str | None
    query: str


Fault = Callable[[Asked, Scope, Receive, Send], Awaitable[bool]]
"""Answers instead of the store, or returns False and leaves it to the store."""


@dataclass
class ObjectStore:
    """Serves `body` at every path. `faults` are asked in order, each request anew."""

    body: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    peers: set[tuple[str, int]] = field(default_factory=set)  # a connection each
    most_at_once: int = 0  # requests under way
    address: str = ""
    scheme: str = "http"
    _at_once: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}/bucket/weights?X-Amz-Signature=top-secret"

    @property
    def ranges(self) -> list[int]:
        """Where each range began that was asked for, without the question for the length."""
        return [one.first for one in self.asked if one.last > 0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        first, last = request.headers["range"].removeprefix("bytes=").split("-")
        asked = Asked(int(first), int(last), request.headers.get("if-match"), request.url.query)
        self.asked.append(asked)
        self.peers.add(tuple(scope["client"]))
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            for fault in list(self.faults):
                if await fault(asked, scope, receive, send):
                    return
            await self.answer(asked, scope, receive, send)
        finally:
            self._at_once -= 1

    async def answer(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        if asked.if_match not in (None, self.etag):
            await Response(status_code=412)(scope, receive, send)
        elif asked.first >= len(self.body):
            headers = {"content-range": f"bytes */{len(self.body)}"}
            await Response(status_code=416, headers=headers)(scope, receive, send)
        else:
            await send(self.head(asked))
            span = self.body[asked.first : asked.last + 1]
            for begin in range(0, len(span), PIECE_BYTES):
                await send(piece(span[begin : begin + PIECE_BYTES]))
            await send(piece(b"", more=False))

    def head(self, asked: Asked) -> dict[str, object]:
        last = min(asked.last, len(self.body) - 1)
        headers = {
            "content-range": f"bytes {asked.first}-{last}/{len(self.body)}",
            "content-length": str(last - asked.first + 1),
            "etag": self.etag,
            "last-modified": self.modified,
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items() if value]
        return {"type": "http.response.start", "status": 206, "headers": pairs}


def piece(data: bytes, *, more: bool = True) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


# --- faults -------------------------------------------------------------------------------------


def status(code: int, times: int = 10**9, *, all_of_them: bool = False) -> Fault:
    """Answers ranges with this status, so many times. The question for the length is answered,
    unless it is to be `all_of_them`."""
    left = times

    async def fault(asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        nonlocal left
        if (asked.last == 0 and not all_of_them) or left == 0:
            return False
        left -= 1
        await Response(b"no", status_code=code)(scope, receive, send)
        return True

    return fault


def breaks_off(store: ObjectStore, times: int) -> Fault:
    """Closes the connection in the middle of a range, so many times."""
    left = times

    async def fault(asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        nonlocal left
        if asked.last == 0 or left == 0:
            return False
        left -= 1
        await send(store.head(asked))
        await send(piece(store.body[asked.first : asked.first + 1000]))
        return True  # uvicorn closes the connection: the answer is shorter than it said

    return fault


def trickles(store: ObjectStore, first: int, pieces: int, pause_s: float) -> Fault:
    """Sends the first answer for one place a byte at a time, so many of them, and then the rest."""
    left = 1

    async def fault(asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        nonlocal left
        if asked.last == 0 or asked.first != first or left == 0:
            return False
        left -= 1
        await send(store.head(asked))
        for place in range(first, first + pieces):
            await send(piece(store.body[place : place + 1]))
            await asyncio.sleep(pause_s)
        await send(piece(store.body[first + pieces : asked.last + 1], more=False))
        return True

    return fault


@dataclass
class Stalls:
    """Holds the first so many requests for one place, or any, after a few bytes, until
    `release`."""

    store: ObjectStore
    first: int | None
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    _held: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)

    async def __call__(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        elsewhere = self.first is not None and asked.first != self.first
        if elsewhere or asked.last == 0 or self.times == 0:
            return False
        self.times -= 1
        held = (asyncio.get_running_loop(), asyncio.Event())
        self._held.append(held)
        try:
            await send(self.store.head(asked))
            await send(piece(self.store.body[asked.first : asked.first + FEW_BYTES]))
            self.reached.set()
            if await _first_of(held[1].wait(), _disconnected(receive)) == 0:
                span = self.store.body[asked.first + FEW_BYTES : asked.last + 1]
                await send(piece(span, more=False))
        finally:
            self._held.remove(held)
        return True

    def release(self) -> None:
        """Lets every request that is held go on."""
        for loop, released in list(self._held):
            loop.call_soon_threadsafe(released.set)


async def _first_of(*waits: Coroutine[None, None, object]) -> int:
    """Which of the waits ended first; the others are cancelled."""
    async with asyncio.TaskGroup() as tasks:
        begun = [tasks.create_task(wait) for wait in waits]
        await asyncio.wait(begun, return_when=asyncio.FIRST_COMPLETED)
        first = next(number for number, task in enumerate(begun) if task.done())
        for task in begun:
            task.cancel()
    return first


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- serving ------------------------------------------------------------------------------------


Certificate = tuple[Path, Path]
"""The files of a certificate and its key."""


class _Server(uvicorn.Server):
    def __init__(self, store: ObjectStore, certificate: Certificate | None) -> None:
        chain, key = certificate or (None, None)
        super().__init__(
            uvicorn.Config(
                store,
                log_level="critical",
                lifespan="off",
                timeout_graceful_shutdown=1,
                ssl_certfile=chain,
                ssl_keyfile=key,
            )
        )
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def served(store: ObjectStore, certificate: Certificate | None = None) -> Iterator[ObjectStore]:
    """The store on a free loopback port while the context is open; by TLS with a certificate."""
    store.scheme = "https" if certificate else "http"
    listener = socket.create_server(("127.0.0.1", 0))
    store.address = f"127.0.0.1:{listener.getsockname()[1]}"
    server = _Server(store, certificate)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        assert server.up.wait(30)
        yield store
    finally:
        server.should_exit = True
        thread.join(30)
