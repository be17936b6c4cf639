"""The node's copies of checkpoints: verified before they are served, resident as `mincore` says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import stoker_loader
from stoker.checkpoints.store import InPlace
from stoker.domain import Digest


class LocalStore(Protocol):
    """A checkpoint store on this machine, as the embedded platform's own is."""

    async def locate(self, digest: Digest) -> InPlace:
        """Raises CheckpointNotFound, CheckpointInvalid."""
        ...


class LocalCache:
    """Serves artifacts in place from a store on this machine: the SSD copy is the store's."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store

    async def ensure(self, digest: Digest) -> Path:
        return (await self._store.locate(digest)).path

    async def resident_bytes(self, digest: Digest) -> int:
        path = await self.ensure(digest)
        residency = await asyncio.to_thread(stoker_loader.residency, path)
        return residency.resident_bytes
