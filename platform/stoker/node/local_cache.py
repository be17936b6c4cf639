"""Artifacts that lie on this machine anyway: the SSD copy is the store's own folder."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import stoker_loader
from stoker.checkpoints.store import InPlace
from stoker.domain import Digest
from stoker.errors import Conflict, StokerError
from stoker.lifecycle import CopyState
from stoker.node.held import Held, resident_bytes
from stoker.node.wire import CacheState, CopyInfo


class LocalStore(Protocol):
    """A checkpoint store on this machine, as the embedded platform's own is."""

    async def locate(self, digest: Digest) -> InPlace:
        """Raises CheckpointNotFound, CheckpointInvalid."""
        ...


class LocalCache:
    """Serves artifacts in place from a store on this machine."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._holders: Counter[Digest] = Counter()

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

    async def resident_bytes(self, digest: Digest) -> int:
        return await resident_bytes((await self._store.locate(digest)).path)

    async def state(self) -> CacheState:
        """What instances have used since the start; all else is the store's alone."""
        found = []
        for digest, holders in self._holders.items():
            try:
                path = (await self._store.locate(digest)).path
            except StokerError:
                continue  # deleted, or no longer what it was
            residency = await asyncio.to_thread(stoker_loader.residency, path)
            found.append(
                CopyInfo(
                    digest=digest,
                    state=CopyState.WHOLE,
                    ssd_bytes=residency.checkpoint_bytes,
                    dram_bytes=residency.resident_bytes,
                    holders=holders,
                )
            )
        return CacheState(copies=tuple(found))

    async def evict(self, digest: Digest) -> None:
        raise Conflict(
            f"{digest} lies in the checkpoint store of this machine: `stoker checkpoints delete`",
            param=digest,
        )
