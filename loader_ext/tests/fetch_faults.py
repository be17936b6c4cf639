"""What can go wrong with one chunk of a fetch, at the server's end or at the client's."""

from __future__ import annotations

import subprocess

from starlette.types import Receive, Scope, Send

from support.object_store import Asked, Fault, ObjectStore, piece
from versions import CHUNK, Version


def wrong_bytes(store: ObjectStore, number: int, times: int) -> Fault:
    """One flipped bit in a chunk, so many times."""
    left = times

    async def fault(asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        nonlocal left
        if asked.first != number * CHUNK or asked.last == 0 or left == 0:
            return False
        left -= 1
        data = bytearray(store.body[asked.first : asked.last + 1])
        data[len(data) // 2] ^= 1
        await send(store.head(asked))
        await send(piece(bytes(data), more=False))
        return True

    return fault


def replaces(store: ObjectStore, number: int, other: Version) -> Fault:
    """The object is another one from the first request for this chunk on."""

    async def fault(asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        if asked.first == number * CHUNK and asked.last > 0:
            store.body, store.etag = other.body, other.etag
        return False

    return fault


class Kills:
    """Kills a process when it has got so many bytes of a chunk."""

    def __init__(self, store: ObjectStore, number: int, after_bytes: int) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self._store, self._first, self._after_bytes = store, number * CHUNK, after_bytes

    async def __call__(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        if asked.first != self._first or asked.last == 0 or self.child is None:
            return False
        await send(self._store.head(asked))
        data = self._store.body[asked.first : asked.last + 1][: self._after_bytes]
        await send(piece(data))
        self.child.kill()
        return True
