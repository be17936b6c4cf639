"""What the stores of one process share: a queue of transactions, watches and lease timers.

Transactions run one at a time: planned against the keyspace, persisted, then made visible. So
nothing is ever seen that is not durable, and no lock is held across a wait.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from stoker.errors import BadRequest, ShuttingDown, StokerError, Unavailable
from stoker.store.base import (
    Change,
    Clock,
    Compare,
    Entry,
    LeaseId,
    LeaseNotFound,
    Listing,
    Op,
    Timer,
    check_transaction,
)
from stoker.store.keyspace import Batch, Keyspace

MAX_WAITING_COMMITS = 4096
MIN_TTL_S = 0.001

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Transaction:
    plan: Callable[[], Batch]
    done: asyncio.Future[Batch]


class LocalStore:
    """A store whose truth is a keyspace in this process; `_persist` is where one differs.

    Lives on one event loop. `clock` times the leases (default: that loop).
    """

    def __init__(self, keyspace: Keyspace, *, clock: Clock | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock: Clock = clock or self._loop
        self._keyspace = keyspace
        self._waiting: deque[_Transaction] = deque()
        self._under_way: asyncio.Future[None] | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._timers: dict[LeaseId, Timer] = {}  # of the leases that have not ended
        for lease in keyspace.leases():
            self._arm(lease)

    def _persist(self, batch: Batch) -> asyncio.Future[None] | None:
        """Makes a batch durable; None when it is already. The future raises a StokerError."""
        raise NotImplementedError

    async def get(self, key: str) -> Entry | None:
        self._check_open()
        return self._keyspace.get(key)

    async def range(self, prefix: str) -> Listing:
        self._check_open()
        return self._keyspace.range(prefix)

    async def commit(self, compares: Sequence[Compare], ops: Sequence[Op]) -> int:
        check_transaction(ops)
        batch = await self._submit(partial(self._keyspace.plan, tuple(compares), tuple(ops)))
        return batch.revision

    async def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Change]:
        # The shared history is every watcher's queue: a watcher is only a place in it, so its
        # bound is one number whatever the number of watchers.
        seen = after_revision
        while True:
            self._check_open()
            changed = self._changed
            latest = self._keyspace.revision
            for change in self._keyspace.after(seen):
                if change.key.startswith(prefix):
                    yield change
            seen = max(seen, latest)
            await changed.wait()

    async def grant(self, ttl_s: float) -> LeaseId:
        if not ttl_s >= MIN_TTL_S:
            raise BadRequest(f"a lease lasts at least {MIN_TTL_S} s, not {ttl_s}")
        lease = LeaseId(secrets.randbits(62) + 1)
        await self._submit(partial(self._keyspace.plan_grant, lease, ttl_s))
        return lease

    async def keep_alive(self, lease: LeaseId) -> float:
        self._check_open()
        if lease not in self._timers:
            raise LeaseNotFound(f"lease {lease} has ended; grant a new one")
        return self._arm(lease)

    async def revoke(self, lease: LeaseId) -> None:
        await self._submit(partial(self._keyspace.plan_revoke, lease))

    async def close(self) -> None:
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        while self._under_way is not None:
            await asyncio.wait([self._under_way])
        self._wake()

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("the store is closed")

    # --- transactions -----------------------------------------------------------------------

    async def _submit(self, plan: Callable[[], Batch]) -> Batch:
        self._check_open()
        if len(self._waiting) >= MAX_WAITING_COMMITS:
            raise Unavailable(f"{MAX_WAITING_COMMITS} writes are already waiting", retry_after_s=1)
        done: asyncio.Future[Batch] = self._loop.create_future()
        self._waiting.append(_Transaction(plan, done))
        self._advance()
        return await done

    def _advance(self) -> None:
        """Runs waiting transactions until one has to wait for the disk."""
        while self._waiting and self._under_way is None:
            transaction = self._waiting.popleft()
            try:
                batch = transaction.plan()
            except StokerError as error:
                _fail(transaction.done, error)
                continue
            persisting = None if batch.empty else self._persist(batch)
            if persisting is None:
                self._finish(transaction.done, batch)
            else:
                self._under_way = persisting
                persisting.add_done_callback(partial(self._persisted, transaction.done, batch))

    def _persisted(
        self, done: asyncio.Future[Batch], batch: Batch, outcome: asyncio.Future[None]
    ) -> None:
        self._under_way = None
        error = outcome.exception()
        if error is not None:
            _fail(done, error)
        else:
            self._finish(done, batch)
        self._advance()

    def _finish(self, done: asyncio.Future[Batch], batch: Batch) -> None:
        self._keyspace.apply(batch)
        if batch.granted is not None and not self._closed:
            self._arm(batch.granted[0])
        if batch.revoked is not None:
            self._disarm(batch.revoked)
        if batch.changes:
            self._wake()
        if not done.done():
            done.set_result(batch)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- leases -----------------------------------------------------------------------------

    def _arm(self, lease: LeaseId) -> float:
        self._disarm(lease)
        ttl_s = self._keyspace.ttl_s(lease)
        self._timers[lease] = self._clock.call_at(
            self._clock.time() + ttl_s, partial(self._expire, lease)
        )
        return ttl_s

    def _disarm(self, lease: LeaseId) -> None:
        timer = self._timers.pop(lease, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, lease: LeaseId) -> None:
        self._disarm(lease)  # from here on it cannot be kept alive
        done: asyncio.Future[Batch] = self._loop.create_future()
        done.add_done_callback(partial(self._expired, lease))
        self._waiting.append(_Transaction(partial(self._keyspace.plan_revoke, lease), done))
        self._advance()

    def _expired(self, lease: LeaseId, outcome: asyncio.Future[Batch]) -> None:
        error = outcome.exception()
        if error is None or isinstance(error, LeaseNotFound):  # revoked in the meantime
            return
        # The disk refused the deletion. What is not durable is not shown, so the lease lives on
        # for one more term and ends then.
        log.warning("lease %d could not be ended: %s", lease, error)
        if not self._closed:
            self._arm(lease)


def _fail(done: asyncio.Future[Batch], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
