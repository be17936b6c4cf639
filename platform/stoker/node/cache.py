"""The node's copies of what a store elsewhere keeps: brought once, held while they are needed, kept
within a budget, and given up when they are least worth their bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from stoker.checkpoints.store import Content, Report, Signed, StoreRefused
from stoker.checkpoints.waiting import in_thread, to_the_end
from stoker.domain import Digest, Tier
from stoker.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    ShuttingDown,
    StokerError,
    StorageFull,
)
from stoker.lifecycle import COPY, CopyEvent, CopyState, advance
from stoker.node.copies import Copies
from stoker.node.copy import Arrival, Copy
from stoker.node.counters import BUCKET, Counters
from stoker.node.eviction import Valued, evict, used
from stoker.node.fetching import Course, bring
from stoker.node.held import Arrived, Dropping, Held, resident_bytes
from stoker.node.verifying import verified
from stoker.node.wire import CacheState
from stoker.store.base import StorageReadOnly

MAX_LOCATES = 3  # of one arrival: signatures expire, and what rotted is put again
# Until the first fetch was measured: of a link of 10 Gbit/s, and of a store that is asked.
ASSUMED_BYTES_PER_S = 1.25e9
ASK_S = 0.02
RATE_WEIGHT = 0.3  # of the newest fetch
SMALLEST_SAMPLE_BYTES = 1 << 20  # below this a rate says more about overheads

log = structlog.get_logger(__name__)


class CopyInUse(Conflict):
    code = "copy_in_use"
    retryable = False


class RemoteStore(Protocol):
    """A checkpoint store elsewhere."""

    async def locate(self, digest: Digest) -> Signed:
        """Raises CheckpointNotFound, CheckpointInvalid, StoreUnreachable, StoreRefused."""
        ...


class NodeCache:
    """The copies below `root`, brought from `store`, that together take `budget_bytes` at most
    (None: what the disk has). Fetches are tasks of `tasks`."""

    def __init__(
        self,
        root: Path,
        store: RemoteStore,
        *,
        budget_bytes: int | None,
        tasks: asyncio.TaskGroup,
        counters: Counters,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._folders = Copies(root)
        self._store = store
        self._budget_bytes = budget_bytes
        self._tasks = tasks
        self._clock = clock
        self._wall_clock = wall_clock
        self._copies: dict[Digest, Copy] = {}
        self._uses = 0
        self._bytes_per_s = ASSUMED_BYTES_PER_S
        self._counters = counters
        self._written: frozenset[Digest] = frozenset()  # pins, for the next start
        self._dropping: list[Dropping] = []

    async def open(self) -> None:
        """After a start: finds what is there, and what of it was compared on this node."""
        for digest, disk_bytes in (await in_thread(self._folders.sweep)).items():
            copy = self._copy(digest)
            self._takes(copy, disk_bytes)
            if await in_thread(self._folders.unchanged, digest):
                copy.state = advance(COPY, copy.state, CopyEvent.WANTED)
                copy.state = advance(COPY, copy.state, CopyEvent.ARRIVED)
        self._written = await in_thread(self._folders.pinned)
        self._pin(self._written)
        if self._budget_bytes is not None and self._taken_bytes() > self._budget_bytes:
            await self._free(self._taken_bytes() - self._budget_bytes, "budget")

    @asynccontextmanager
    async def hold(self, digest: Digest) -> AsyncIterator[Held]:
        """The artifact's folder, with all but its weights whole, and not evicted until the end.

        Whoever holds it first has it fetched; when the last one leaves before it is whole, its
        fetch stops and what has come stays. Raises CheckpointNotFound, CheckpointInvalid,
        StoreUnreachable, StoreRefused, StorageFull, StorageReadOnly.
        """
        copy = self._copy(digest)
        with copy.holding():
            yield await self._held(copy)

    async def find(self, digest: Digest) -> Path | None:
        """The artifact's folder if all of it is there."""
        copy = self._copies.get(digest)
        whole = copy is not None and copy.state is CopyState.WHOLE
        return self._folders.path(digest) if whole else None

    async def whole(self, digest: Digest) -> Path | None:
        """The artifact's folder once all of it is there; None where it is not, and nobody brings
        it."""
        copy = self._copies.get(digest)
        if copy is not None and copy.arrival is not None:
            await asyncio.wait([copy.arrival.kept])
        return await self.find(digest)

    async def resident_bytes(self, digest: Digest) -> int:
        path = await self.find(digest)
        return 0 if path is None else await resident_bytes(path)

    async def state(self) -> CacheState:
        """All copies, also those of which a part is there."""
        there = [copy for copy in self._copies.values() if copy.worth.size_bytes]
        found = [copy.info(self._uses, await self.resident_bytes(copy.digest)) for copy in there]
        return CacheState(copies=tuple(found), budget_bytes=self._budget_bytes)

    async def pin(self, digests: frozenset[Digest]) -> None:
        """From now on, also after a start, these are never given up, and no others for being
        pinned."""
        self._pin(digests)
        if digests == self._written:
            return
        try:
            await in_thread(self._folders.write_pinned, digests)
        except StokerError as error:
            log.warning("pins not written", error=error.message)
        else:
            self._written = digests

    def _pin(self, digests: frozenset[Digest]) -> None:
        for digest in digests:
            self._copy(digest)
        for copy in self._copies.values():
            copy.pinned = copy.digest in digests

    def when_dropping(self, dropping: Dropping) -> None:
        """Has this awaited before the files of a copy are removed."""
        self._dropping.append(dropping)

    async def verify(self, digest: Digest, report: Report) -> None:
        """Reads a whole copy again; one that is not what it was is brought anew when it is needed
        next. Raises CheckpointNotFound, CheckpointInvalid."""
        copy = self._copies.get(digest)
        if copy is None or copy.state is not CopyState.WHOLE:
            raise CheckpointNotFound(
                f"this node has no whole copy of {digest}; `stoker cache prefetch` brings one",
                param=digest,
            )
        with copy.holding():
            try:
                await verified(self._folders, digest, report)
            except CheckpointInvalid:
                await self._rotten(copy)
                raise

    async def evict(self, digest: Digest) -> None:
        """Gives up a copy; one that is not there is given up already. Raises CopyInUse."""
        copy = self._copies.get(digest)
        if copy is None or not copy.worth.size_bytes:
            return
        if copy.holders or copy.state is CopyState.ARRIVING:
            raise CopyInUse(
                f"{digest} is needed by {copy.holders} instances or starts of this node; scale"
                " their functions to 0 first",
                param=digest,
            )
        if copy.pinned:
            raise CopyInUse(
                f"{digest} is pinned on this node, by hand (`stoker cache unpin`) or by the"
                " `cache` section of a function",
                param=digest,
            )
        await self._give_up([copy], "asked")

    # --- one copy -------------------------------------------------------------------------------

    async def _held(self, copy: Copy) -> Held:
        path = self._folders.path(copy.digest)
        while True:
            if copy.state is CopyState.WHOLE:
                if await in_thread(self._folders.unchanged, copy.digest):
                    self._use(copy)
                    return Held(path)
                await self._changed(copy)
                continue  # meanwhile another may have brought it
            if copy.state is CopyState.ABSENT:
                self._begin(copy)
            arrival = copy.arrival
            assert arrival is not None
            if arrival.stopping:
                assert arrival.task is not None
                await asyncio.wait([arrival.task])
                continue
            await asyncio.shield(arrival.readable)
            self._use(copy)
            return Held(path, arrival.arrived, arrival.kept)

    async def _rotten(self, copy: Copy) -> None:
        """What it holds is not to be believed any more, also after a start."""
        async with copy.changing:  # no fetch writes a record meanwhile
            if copy.state is CopyState.WHOLE:
                copy.state = advance(COPY, copy.state, CopyEvent.CHANGED)
                await self._let_go(copy.digest)
                await in_thread(self._folders.distrust, copy.digest)

    async def _changed(self, copy: Copy) -> None:
        """Its files are not what was compared: whoever holds them keeps those, the next gets
        others."""
        if copy.state is not CopyState.WHOLE:
            return
        log.warning("a copy changed on the disk", checkpoint=copy.digest)
        copy.state = advance(COPY, copy.state, CopyEvent.CHANGED)
        await self._let_go(copy.digest)

    async def _let_go(self, digest: Digest) -> None:
        for dropping in self._dropping:
            await dropping(digest)

    def _begin(self, copy: Copy) -> None:
        copy.state = advance(COPY, copy.state, CopyEvent.WANTED)
        copy.arrival = arrival = Arrival()
        arrival.task = self._tasks.create_task(
            self._arrive(copy, arrival), name=f"fetch {copy.digest}"
        )

    async def _arrive(self, copy: Copy, arrival: Arrival) -> None:
        event = CopyEvent.ABANDONED
        try:
            async with copy.changing:
                try:
                    await self._bring(copy, arrival)
                except BaseException:
                    if not copy.worth.size_bytes:  # given up when it was wanted again
                        await in_thread(self._folders.drop, copy.digest)
                    raise
            event = CopyEvent.ARRIVED
            arrival.keep()
        except StokerError as error:
            log.warning("not fetched", checkpoint=copy.digest, error=error.message)
            arrival.fail(error)
        finally:
            arrival.fail(ShuttingDown(f"the fetch of {copy.digest} was stopped"))
            copy.state = advance(COPY, copy.state, event)
            copy.arrival = None

    async def _bring(self, copy: Copy, arrival: Arrival) -> None:
        location = await self._store.locate(copy.digest)
        for _ in range(MAX_LOCATES - 1):
            try:
                return await self._fetch(copy, arrival, location)
            except (StoreRefused, CheckpointInvalid):
                if arrival.stopping:
                    raise
                again = await self._store.locate(copy.digest)
                if not self._is_news(location, again):
                    raise
                location = again
        return await self._fetch(copy, arrival, location)

    def _is_news(self, before: Signed, now: Signed) -> bool:
        """Whether what a store refused may be given now: signed again, or put again."""
        tags = [{path: one.etag for path, one in at.sources.items()} for at in (before, now)]
        return tags[0] != tags[1] or self._wall_clock() >= before.expires_at

    async def _fetch(self, copy: Copy, arrival: Arrival, location: Signed) -> None:
        size_bytes = _size_bytes(location.content)
        await self._make_room(copy, size_bytes)
        began = self._clock()

        def filled(brought_bytes: int) -> None:
            ended = self._clock()
            self._learn(brought_bytes, ended - began)
            arrival.end(Arrived(brought_bytes, ended - began, ended))

        while True:
            course = Course(arrival.begin, filled)
            try:
                await bring(location, self._folders.path(copy.digest), course)
                break
            except StorageReadOnly:
                raise
            except StorageFull:
                # Of a disk that others fill as well: what a fetch needs it takes at its beginning.
                if not await self._free(size_bytes, "disk", keep=copy):
                    raise
            finally:
                self._counters.fetched(BUCKET, course.brought_bytes)
        await in_thread(self._folders.vouch, location.content, course.stats)
        log.info(
            "fetched",
            checkpoint=copy.digest,
            bytes=course.brought_bytes,
            seconds=round(self._clock() - began, 3),
        )

    def _learn(self, brought_bytes: int, duration_s: float) -> None:
        if brought_bytes >= SMALLEST_SAMPLE_BYTES and duration_s > 0:
            rate = brought_bytes / duration_s
            self._bytes_per_s += RATE_WEIGHT * (rate - self._bytes_per_s)

    # --- room -----------------------------------------------------------------------------------

    async def _make_room(self, copy: Copy, size_bytes: int) -> None:
        """Takes `size_bytes` of the budget for a copy, before anything of it comes."""
        needed_bytes, had_bytes = 0, copy.worth.size_bytes
        if self._budget_bytes is not None:
            needed_bytes = self._taken_bytes() - had_bytes + size_bytes - self._budget_bytes
        self._takes(copy, size_bytes)  # before anybody else counts
        if needed_bytes > 0 and not await self._free(needed_bytes, "budget", keep=copy):
            self._takes(copy, had_bytes)
            raise StorageFull(
                f"{copy.digest} needs {size_bytes} bytes of the node's cache of"
                f" {self._budget_bytes}, and what else is there is in use: raise --cache-size, or"
                " stop functions",
                details={"needed_bytes": size_bytes, "budget_bytes": self._budget_bytes},
            )

    async def _free(self, needed_bytes: int, reason: str, keep: Copy | None = None) -> bool:
        """Gives up copies that nobody needs, and never `keep`, if they have so many bytes."""
        candidates = [
            copy.worth for copy in self._copies.values() if copy.may_go() and copy is not keep
        ]
        if sum(worth.size_bytes for worth in candidates) < needed_bytes:
            return False
        victims = [self._copies[digest] for digest in evict(candidates, needed_bytes)]
        await self._give_up(victims, reason)
        return True

    async def _give_up(self, copies: Sequence[Copy], reason: str) -> None:
        victims = {copy: copy.worth.size_bytes for copy in copies}
        for victim in victims:  # all of them before anything is awaited: nobody counts them twice
            victim.state = advance(COPY, victim.state, CopyEvent.EVICTED)
            self._takes(victim, 0)
        await to_the_end(self._drop(victims, reason))

    async def _drop(self, victims: Mapping[Copy, int], reason: str) -> None:
        """Removes the files of copies that were given up, which had so many bytes."""
        failed: StokerError | None = None
        for victim, size_bytes in victims.items():
            if not victim.is_gone():  # its lock may be held for as long as a fetch takes
                continue
            async with victim.changing:
                if not victim.is_gone():
                    continue
                await self._let_go(victim.digest)
                try:
                    await in_thread(self._folders.drop, victim.digest)
                except StokerError as error:
                    failed = error
                    self._takes(victim, size_bytes)
                    continue
            self._counters.evicted(Tier.SSD, reason)
            log.info("evicted", checkpoint=victim.digest, bytes=size_bytes, reason=reason)
        if failed is not None:
            raise failed

    def _copy(self, digest: Digest) -> Copy:
        if digest not in self._copies:
            self._copies[digest] = Copy(digest, Valued(digest, size_bytes=0, reload_s=ASK_S))
        return self._copies[digest]

    def _takes(self, copy: Copy, size_bytes: int) -> None:
        copy.worth = replace(copy.worth, size_bytes=size_bytes)

    def _taken_bytes(self) -> int:
        return sum(copy.worth.size_bytes for copy in self._copies.values())

    def _use(self, copy: Copy) -> None:
        reload_s = ASK_S + copy.worth.size_bytes / self._bytes_per_s
        self._uses += 1
        copy.worth = used(replace(copy.worth, reload_s=reload_s), self._uses)
        copy.last_used_at = self._wall_clock()


def _size_bytes(content: Content) -> int:
    return sum(file.size_bytes for file in content.digest.files)
