"""Tells nodes what to keep, whenever that changes, or which nodes there are."""

from __future__ import annotations

import asyncio

import structlog

from stoker.domain import Digest, NodeId, Revision
from stoker.errors import NoCapacity, NotFound
from stoker.node.wire import KeepList
from stoker.scheduler.keeping import plan
from stoker.scheduler.nodes import NodeDirectory
from stoker.store.base import Compacted, Store
from stoker.store.catalog import PINS, Catalog

FUNCTIONS = "functions/"
TELL_AGAIN_S = 5.0  # after a node did not take what it was told

log = structlog.get_logger(__name__)


class Keeper:
    """Says everything anew each time: agents know what of it is new to them."""

    def __init__(self, store: Store, catalog: Catalog, nodes: NodeDirectory) -> None:
        self._store = store
        self._catalog = catalog
        self._nodes = nodes
        self._stale = asyncio.Event()

    async def run(self) -> None:
        """Follows functions, pins and nodes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for prefix in (FUNCTIONS, PINS):
                tasks.create_task(self._follow(prefix), name=f"follow {prefix}")
            tasks.create_task(self._follow_nodes(), name="follow nodes that come and go")
            while True:
                await self._stale.wait()
                self._stale.clear()
                if not await self._tell():
                    asyncio.get_running_loop().call_later(TELL_AGAIN_S, self._stale.set)

    async def _follow(self, prefix: str) -> None:
        while True:
            listing = await self._store.range(prefix)
            self._stale.set()
            try:
                async for _ in self._store.watch(prefix, listing.revision):
                    self._stale.set()
            except Compacted:
                continue  # list again, as the store asks

    async def _follow_nodes(self) -> None:
        while True:
            await self._nodes.membership_changed()
            self._stale.set()

    async def _tell(self) -> bool:
        """Whether every node took what it is to keep."""
        pins = await self._catalog.pins()
        holding, complete = await self._holding()
        for node, keep in plan(await self._latest(), pins, holding).items():
            try:
                await self._nodes.client(node).keep(KeepList(keep=keep))
            except NoCapacity as error:
                log.info("node not told", node=node, error=error.message)
                complete = False
        return complete

    async def _latest(self) -> list[Revision]:
        found = []
        for function in await self._catalog.functions():
            try:
                found.append(await self._catalog.revision(function.latest))
            except NotFound:
                continue  # deleted or deployed anew meanwhile, of which we hear
        return found

    async def _holding(self) -> tuple[dict[NodeId, frozenset[Digest]], bool]:
        """What each node has, of those that answer, and whether all do."""
        holding: dict[NodeId, frozenset[Digest]] = {}
        states = self._nodes.states()
        for state in states:
            try:
                cache = await self._nodes.client(state.node_id).cache()
            except NoCapacity as error:
                log.info("node not asked", node=state.node_id, error=error.message)
                continue
            holding[state.node_id] = frozenset(copy.digest for copy in cache.copies)
        return holding, len(holding) == len(states)
