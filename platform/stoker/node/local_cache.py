"""Artifacts that lie on this machine anyway: the SSD copy is the store's own folder."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import stoker_loader
from stoker.checkpoints.store import InPlace, Report
from stoker.domain import Digest
from stoker.errors import Conflict, StokerError
from stoker.lifecycle import CopyState
from stoker.node.held import Dropping, Held, resident_bytes
from stoker.node.wire import CacheState, CopyInfo
from stoker_loader.errors import LoaderError


class LocalStore(Protocol):
    """A checkpoint store on this machine, as the embedded platform's own is."""

    async def locate(self, digest: Digest) -> InPlace:
        """Raises CheckpointNotFound, CheckpointInvalid."""
        ...

    async def verify(self, digest: Digest, report: Report) -> None:
        """Raises CheckpointNotFound, CheckpointInvalid."""
        ...


class LocalCache:
    """Serves artifacts in place from a store on this machine."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._holders: Counter[Digest] = Counter()
        self._pinned: frozenset[Digest] = frozenset()

    @asynccontextmanager
    async def hold(self, digest: Digest) -> AsyncIterator[Held]:
        path = (await self._store.locate(digest)).path
        self._holders[digest] += 1
        try:
            yield Held(path)
        finally:
            self._holders[digest] -= 1

    async def find(self, digest: Digest) -> Path | None:
        return (await self._store.locate(digest)).path

    async def whole(self, digest: Digest) -> Path | None:
        return await self.find(digest)

    async def resident_bytes(self, digest: Digest) -> int:
        return await resident_bytes((await self._store.locate(digest)).path)

    async def state(self) -> CacheState:
        """What instances have used since the start, and what is pinned; all else is the store's
        alone."""
        found = []
        for digest in {**self._holders, **dict.fromkeys(self._pinned, 0)}:
            try:
                path = (await self._store.locate(digest)).path
                residency = await asyncio.to_thread(stoker_loader.residency, path)
            except (StokerError, LoaderError):
                continue  # deleted, or no longer what it was
            found.append(
                CopyInfo(
                    digest=digest,
                    state=CopyState.WHOLE,
                    ssd_bytes=residency.checkpoint_bytes,
                    dram_bytes=residency.resident_bytes,
                    holders=self._holders[digest],
                    pinned=digest in self._pinned,
                )
            )
        return CacheState(copies=tuple(found))

    async def evict(self, digest: Digest) -> None:
        raise Conflict(
            f"{digest} lies in the checkpoint store of this machine: `stoker checkpoints delete`",
            param=digest,
        )

    async def verify(self, digest: Digest, report: Report) -> None:
        await self._store.verify(digest, report)

    async def pin(self, digests: frozenset[Digest]) -> None:
        """Nothing is ever given up here: it is the DRAM tier that this is for."""
        self._pinned = digests

    def when_dropping(self, dropping: Dropping) -> None:
        """Files go when the store deletes them, which nobody does while a revision needs them."""
