"""Blank workers kept ready, so that a start costs a claim and not an import of torch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from stoker.errors import StartupFailed, StokerError
from stoker.node.drivers.base import Driver, Worker

SPAWNS_AT_ONCE = 2  # more only make each other slower
REFILL_AFTER_S = 0.5  # without a start: a first token is out by then, and a burst is over
REFILL_ATTEMPTS = 3  # failed spawns in a row after which the pool waits for the next claim

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Claimed:
    worker: Worker
    warm: bool  # it was blank already when it was asked for


class WarmPool:
    """Keeps `size` blank workers. Refilling waits until no start is under way or just over: on a
    small machine the imports of a new worker would take the very cores that the start needs."""

    def __init__(
        self,
        driver: Driver,
        size: int,
        name_worker: Callable[[], str],
        prepare: Callable[[Worker], Awaitable[None]],
        on_change: Callable[[], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.size = size
        self._driver = driver
        self._name_worker = name_worker
        self._prepare = prepare
        self._on_change = on_change
        self._tasks = tasks
        self._blank: deque[Worker] = deque()
        self._claims: deque[asyncio.Future[Worker]] = deque()
        self._spawning = 0
        self._preparing = 0
        self._busy = 0  # starts under way
        self._failures = 0
        self._closed = False
        self._refill: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> int:
        return len(self._blank)

    @property
    def starting(self) -> int:
        """Workers that are on their way to being blank and prepared."""
        return self._spawning + self._preparing

    @contextmanager
    def start_under_way(self) -> Iterator[None]:
        """Holds refills back while it is open."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._refill_later()

    async def claim(self) -> Claimed:
        """Takes a blank worker, or waits for one to be spawned.

        Raises StartupFailed when a spawn made for this claim fails.
        """
        self._failures = 0
        if self._blank:
            worker = self._blank.popleft()
            worker.promote()
            self._on_change()
            return Claimed(worker, warm=True)
        claim: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._claims.append(claim)
        self._driver.hurry()
        self._spawn_missing()
        try:
            worker = await claim
            worker.promote()
            return Claimed(worker, warm=False)
        except asyncio.CancelledError:
            if claim.done() and not claim.cancelled() and claim.exception() is None:
                self._offer(claim.result())
            raise
        finally:
            if claim in self._claims:
                self._claims.remove(claim)

    def refill(self) -> None:
        """Spawns what is missing, unless a start is under way."""
        self._spawn_missing()

    def _refill_later(self) -> None:
        """Every start that ends puts the refill off again."""
        if self._refill is not None:
            self._refill.cancel()
        self._refill = asyncio.get_running_loop().call_later(REFILL_AFTER_S, self.refill)

    def prepare_all(self) -> None:
        """Prepares the blank workers anew, because what they may have to load has changed."""
        for worker in self._blank:
            self._tasks.create_task(self._prepare_blank(worker), name=f"prepare {worker.id}")

    async def close(self, grace_s: float) -> None:
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        while self._blank:
            await self._blank.popleft().stop(grace_s)

    def _spawn_missing(self) -> None:
        if self._closed:
            return
        spare = 0 if self._busy or self._failures >= REFILL_ATTEMPTS else self.size
        wanted = len(self._claims) + spare - len(self._blank)
        while self._spawning < min(wanted, SPAWNS_AT_ONCE):
            self._spawning += 1
            self._tasks.create_task(self._spawn(), name="spawn blank worker")
        self._on_change()

    async def _spawn(self) -> None:
        try:
            worker = await self._driver.spawn(self._name_worker(), background=not self._claims)
        except StokerError as error:
            self._spawning -= 1
            self._failed(error)
            return
        except asyncio.CancelledError:
            self._spawning -= 1
            raise
        self._spawning -= 1
        self._failures = 0
        if self._closed:
            await worker.stop(0)
            return
        self._offer(worker)
        self._spawn_missing()

    def _offer(self, worker: Worker) -> None:
        """To the oldest claim, else to the pool."""
        while self._claims:
            claim = self._claims.popleft()
            if not claim.done():
                claim.set_result(worker)
                return
        self._blank.append(worker)
        self._tasks.create_task(self._watch(worker), name=f"watch blank {worker.id}")
        self._tasks.create_task(self._prepare_blank(worker), name=f"prepare {worker.id}")
        self._on_change()

    async def _prepare_blank(self, worker: Worker) -> None:
        """A worker can be claimed while it prepares; what it has read by then is read."""
        self._preparing += 1
        self._on_change()
        try:
            await self._prepare(worker)
        finally:
            self._preparing -= 1
            self._on_change()

    async def _watch(self, worker: Worker) -> None:
        """A blank worker that dies leaves the pool; whoever claimed it watches it from then on."""
        ended = await worker.wait()
        if worker in self._blank:
            self._blank.remove(worker)
            log.warning("blank worker died", worker=worker.id, how=str(ended))
            self._spawn_missing()

    def _failed(self, error: StokerError) -> None:
        self._failures += 1
        log.error("blank worker did not start", error=error.message, **error.details)
        if self._claims:
            claim = self._claims.popleft()
            if not claim.done():
                claim.set_exception(StartupFailed(error.message, details=error.details))
        self._spawn_missing()
