"""The node's copies of checkpoints: verified before they are served, resident as `mincore` says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import stoker_loader
from stoker.domain import Digest


class Verified(Protocol):
    """Where verified artifacts lie; the embedded platform's own store is on the same machine."""

    async def ensure_verified(self, digest: Digest) -> Path:
        """Raises CheckpointNotFound, CheckpointInvalid."""
        ...


class LocalCache:
    """Serves artifacts in place from a store on this machine: the SSD copy is the store's."""

    def __init__(self, store: Verified) -> None:
        self._store = store

    async def ensure(self, digest: Digest) -> Path:
        return await self._store.ensure_verified(digest)

    async def resident_bytes(self, digest: Digest) -> int:
        path = await self._store.ensure_verified(digest)
        residency = await asyncio.to_thread(stoker_loader.residency, path)
        return residency.resident_bytes
