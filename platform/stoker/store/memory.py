"""A store that forgets: for tests and simulations."""

from __future__ import annotations

import asyncio

from stoker.store.base import Clock
from stoker.store.keyspace import HISTORY_LIMIT, Batch, Keyspace
from stoker.store.local import LocalStore


class MemoryStore(LocalStore):
    """A `Store` in memory alone."""

    def __init__(self, *, clock: Clock | None = None, history_limit: int = HISTORY_LIMIT) -> None:
        super().__init__(Keyspace(history_limit=history_limit), clock=clock)

    def _persist(self, batch: Batch) -> asyncio.Future[None] | None:  # noqa: ARG002
        return None
