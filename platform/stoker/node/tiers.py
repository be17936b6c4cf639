"""All tiers of a node together: what an agent says and does about copies of artifacts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager

import structlog

from stoker.checkpoints.store import Report
from stoker.domain import Digest, PhaseName, Tier
from stoker.errors import CheckpointInvalid, ShuttingDown, StokerError
from stoker.node.counters import Counters
from stoker.node.dram import Dram
from stoker.node.held import Cache, Held
from stoker.node.wire import CacheState, CopyInfo, Keep, MeasuredPhase

BRING_AGAIN_S = (5.0, 30.0, 120.0)  # after a failure; the last one repeats while it is pinned

Work = Callable[[Digest], Coroutine[None, None, None]]

log = structlog.get_logger(__name__)


class Tiers:
    """The copies on the SSD, those of them that are locked in DRAM, and what is to be kept of both.
    Its tasks are tasks of `tasks`."""

    def __init__(
        self, cache: Cache, dram: Dram, counters: Counters, tasks: asyncio.TaskGroup
    ) -> None:
        """`counters` are those that `cache` and `dram` count in as well."""
        self.cache = cache
        self._dram = dram
        self._counters = counters
        self._tasks = tasks
        self._kept: dict[Digest, Keep] = {}
        self._filled: dict[Digest, Keep] = {}  # brought to memory, where nothing is locked
        self._bringing: dict[Digest, asyncio.Task[None]] = {}
        self._locking: dict[Digest, asyncio.Task[None]] = {}
        self._closed = False
        cache.when_dropping(self._dropping)

    async def close(self) -> None:
        """Stops what it brings, and lets all pages go."""
        self._closed = True
        under_way = [*self._bringing.values(), *self._locking.values()]
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)
        await self._dram.close()

    @asynccontextmanager
    async def hold(self, digest: Digest) -> AsyncIterator[Held]:
        """As `Cache.hold`; while it lasts, nothing of the copy is given up in any tier."""
        async with self.cache.hold(digest) as held:
            with self._dram.using(digest):
                yield held

    def loaded(self, digest: Digest, phases: Iterable[MeasuredPhase]) -> None:
        """A start has loaded the copy: counts where it was, and begins to lock it."""
        self._counters.found_in(tier_of(phases))
        if self._dram.budget_bytes:
            self._begin("lock", self._locking, digest, self._lock)

    def prefetch(self, digest: Digest) -> None:
        """Begins to bring a copy, before anybody needs it. Raises ShuttingDown."""
        if self._closed:
            raise ShuttingDown("this node is shutting down")
        self._begin("bring", self._bringing, digest, self._bring)

    async def keep(self, wanted: Iterable[Keep]) -> None:
        """From now on these are kept, and what lacks of them is brought; others may be given up.

        What is only to be brought is brought once: it may have been given up since.
        """
        before, self._kept = self._kept, {one.digest: one for one in wanted}
        self._filled = {one: kept for one, kept in self._filled.items() if one in self._kept}
        pinned = {one.digest: one.pin for one in self._kept.values() if one.pin}
        self._dram.pin(frozenset(one for one, tier in pinned.items() if tier is Tier.DRAM))
        await self.cache.pin(frozenset(pinned))
        for one in list(self._kept.values()):
            if one.pin or before.get(one.digest) != one:
                self._begin("bring", self._bringing, one.digest, self._bring)

    async def evict(self, digest: Digest) -> None:
        """Gives up a copy in all tiers. Raises Conflict while somebody needs it."""
        await self.cache.evict(digest)

    async def verify(self, digest: Digest, report: Report) -> None:
        """Reads a copy again. Raises CheckpointNotFound, CheckpointInvalid."""
        try:
            await self.cache.verify(digest, report)
        except CheckpointInvalid:
            if (kept := self._kept.get(digest)) is not None and kept.pin:
                self._begin("bring", self._bringing, digest, self._bring)
            raise

    async def state(self) -> CacheState:
        """What is there, why, and what has happened."""
        await self._dram.prune()
        found = await self.cache.state()
        return found.model_copy(
            update={
                "copies": tuple(map(self._with_tiers, found.copies)),
                "dram_budget_bytes": self._dram.budget_bytes,
                "counters": self._counters.said(),
            }
        )

    def _with_tiers(self, copy: CopyInfo) -> CopyInfo:
        kept = self._kept.get(copy.digest)
        why = list(kept.why) if kept is not None else []
        if copy.holders:
            why.append(f"{copy.holders} in use")
        return copy.model_copy(
            update={"locked_bytes": self._dram.locked_bytes(copy.digest), "why": tuple(why)}
        )

    async def _dropping(self, digest: Digest) -> None:
        self._filled.pop(digest, None)
        await self._dram.release(digest)

    def _begin(
        self, what: str, under_way: dict[Digest, asyncio.Task[None]], digest: Digest, work: Work
    ) -> None:
        """Begins what is not under way already."""
        if digest in under_way or self._closed:
            return
        task = self._tasks.create_task(work(digest), name=f"{what} {digest}")
        under_way[digest] = task
        task.add_done_callback(lambda _: under_way.pop(digest))

    async def _bring(self, digest: Digest) -> None:
        """Brings a copy to where it is to be; tries again as long as it is pinned there."""
        tries = 0
        while True:
            try:
                await self._bring_once(digest)
            except StokerError as error:
                log.warning("not brought", checkpoint=digest, error=error.message)
            else:
                if not self._lacks_memory(digest):
                    return
            kept = self._kept.get(digest)
            if kept is None or kept.pin is None:
                return
            await asyncio.sleep(BRING_AGAIN_S[min(tries, len(BRING_AGAIN_S) - 1)])
            tries += 1
            if digest not in self._kept:
                return

    async def _bring_once(self, digest: Digest) -> None:
        path = await self.cache.find(digest)
        if path is None:  # else nobody holds it: that it is to be kept is no use of it
            async with self.cache.hold(digest) as held:
                path = held.path
                if held.kept is not None:
                    await asyncio.shield(held.kept)
        if self._lacks_memory(digest):
            kept = self._kept[digest]
            await self._dram.fill(digest, path)
            self._filled[digest] = kept

    def _lacks_memory(self, digest: Digest) -> bool:
        """Whether a copy is to be in memory and is not, as far as this node can do that."""
        kept = self._kept.get(digest)
        if kept is None or kept.bring is not Tier.DRAM:
            return False
        if kept.pin is Tier.DRAM and self._dram.budget_bytes:
            return not self._dram.locked_bytes(digest)
        return self._filled.get(digest) != kept

    async def _lock(self, digest: Digest) -> None:
        try:
            path = await self.cache.whole(digest)
        except StokerError as error:  # deleted, or changed
            log.info("not locked", checkpoint=digest, error=error.message)
            return
        if path is not None:
            await self._dram.take(digest, path)


def tier_of(phases: Iterable[MeasuredPhase]) -> Tier:
    """The slowest tier that bytes of a start came from."""
    tiers = [phase.tier for phase in phases if phase.name in (PhaseName.FETCH, PhaseName.LOAD)]
    return next((tier for tier in (Tier.REMOTE, Tier.SSD) if tier in tiers), Tier.DRAM)
