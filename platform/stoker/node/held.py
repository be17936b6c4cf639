"""A copy of an artifact on a node in the hands of whoever needs it, and what gives it out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import stoker_loader
from stoker.checkpoints.store import Report
from stoker.domain import Digest
from stoker.node.wire import CacheState
from stoker_loader.errors import LoaderError

Dropping = Callable[[Digest], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Held:
    """A copy that stays on the node while it is held. Its weights may still arrive; then `arrival`
    ends when the last byte has, and `kept` when all files are on the disk under their names; or
    they say why not. Both are others' as well: to be awaited through `asyncio.shield`."""

    path: Path
    arrival: asyncio.Future[Arrived] | None = None
    kept: asyncio.Future[None] | None = None


@dataclass(frozen=True, slots=True)
class Arrived:
    """How a copy came."""

    size_bytes: int  # brought from elsewhere
    duration_s: float
    at: float  # when it had, of the monotonic clock


class Cache(Protocol):
    """The node's copies of checkpoints and sources."""

    def hold(self, digest: Digest) -> AbstractAsyncContextManager[Held]:
        """The directory, with verified files alone, which stays until the end; raises
        CheckpointNotFound, CheckpointInvalid, and why it cannot be brought."""
        ...

    async def find(self, digest: Digest) -> Path | None:
        """The directory if all of it is there."""
        ...

    async def whole(self, digest: Digest) -> Path | None:
        """The same, once what is on its way has come."""
        ...

    async def resident_bytes(self, digest: Digest) -> int:
        """Bytes of it that the page cache holds now."""
        ...

    async def state(self) -> CacheState:
        """What is there, and what keeps it."""
        ...

    async def evict(self, digest: Digest) -> None:
        """Gives up a copy. Raises Conflict while somebody needs it."""
        ...

    async def verify(self, digest: Digest, report: Report) -> None:
        """Reads a copy again. Raises CheckpointNotFound, CheckpointInvalid."""
        ...

    async def pin(self, digests: frozenset[Digest]) -> None:
        """From now on these are never given up, and no others for being pinned."""
        ...

    def when_dropping(self, dropping: Dropping) -> None:
        """Has this awaited before the files of a copy are removed."""
        ...


async def resident_bytes(path: Path) -> int:
    """What the page cache holds of a folder now, as `mincore` says."""
    try:
        residency = await asyncio.to_thread(stoker_loader.residency, path)
    except LoaderError:  # it was given up meanwhile
        return 0
    return residency.resident_bytes
