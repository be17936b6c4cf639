"""A node exists while its registration's lease is alive; who started its agent does not matter."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict

from stoker.domain import NodeId
from stoker.store.base import LeaseId, LeaseNotFound, Put, Store

PREFIX = "nodes/"
LEASE_TTL_S = 10.0  # a dead agent is noticed after this at the latest
RENEWALS = 3  # within one lease time, so that one lost renewal changes nothing

log = structlog.get_logger(__name__)


class Registration(BaseModel):
    """Where an agent answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node_id: NodeId
    socket: Path


async def keep_registered(store: Store, registration: Registration) -> None:
    """Registers a node and keeps its lease alive until cancelled, then withdraws it."""
    lease = await _register(store, registration)
    try:
        while True:
            await asyncio.sleep(LEASE_TTL_S / RENEWALS)
            try:
                await store.keep_alive(lease)
            except LeaseNotFound:
                log.warning("registration had lapsed", node=registration.node_id)
                lease = await _register(store, registration)
    finally:
        await store.revoke(lease)


async def _register(store: Store, registration: Registration) -> LeaseId:
    lease = await store.grant(LEASE_TTL_S)
    key = PREFIX + registration.node_id
    await store.commit([], [Put(key, registration.model_dump_json().encode(), lease)])
    return lease
