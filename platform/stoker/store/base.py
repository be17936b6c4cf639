"""The contract of a control-plane store, shaped after etcd's so that etcd fits behind it as is.

Keys are paths, values are bytes. Every commit that changes something gets the next revision of
the whole store; a key remembers the revision that created it and the one that last changed it.
All of `tests/contract/store` holds for every implementation.

Errors that only a store has, as leaves of the tree in `stoker.errors`:

    Conflict    ── Compacted      a watcher is too far behind; it lists again and watches from there
    NotFound    ── LeaseNotFound  the lease ended; its keys are gone
    StorageFull ── StorageReadOnly
    StokerError ── StoreUnusable  foreign or newer schema, corrupt file, or in use elsewhere
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from stoker.errors import BadRequest, Conflict, NotFound, StokerError, StorageFull

LeaseId = NewType("LeaseId", int)

# etcd's own default bounds (--max-txn-ops, --max-request-bytes), kept so that what fits here
# fits there.
MAX_TRANSACTION_OPS = 128
MAX_VALUE_BYTES = 1 << 20
MAX_KEY_BYTES = 1024


class Compacted(Conflict):
    """Changes that a watcher asked for are no longer kept: `range` again, watch after that."""

    code = "compacted"


class LeaseNotFound(NotFound):
    code = "lease_not_found"


class StorageReadOnly(StorageFull):
    """The disk takes no writes at all; freeing space would not help."""

    code = "storage_read_only"


class StoreUnusable(StokerError):
    code = "store_unusable"


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it is now."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: LeaseId | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries in the order of their keys, and the revision at which they were all true."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """What one revision did to one key; `entry` is None when the key was deleted."""

    revision: int
    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Compare:
    """A transaction's condition: the key was last changed at `mod_revision` (0: it is absent)."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: LeaseId | None = None  # the key vanishes with this lease


@dataclass(frozen=True, slots=True)
class Delete:
    """Removes a key; absent is fine."""

    key: str


Op = Put | Delete


class Timer(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    """What leases need of time; an asyncio event loop is one."""

    def time(self) -> float: ...
    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer: ...


class Store(Protocol):
    """Ordered keys with compare-and-swap transactions, watches and leases.

    Once `close` was called every method raises `ShuttingDown`.
    """

    async def get(self, key: str) -> Entry | None: ...

    async def range(self, prefix: str) -> Listing:
        """All entries whose key begins with `prefix`, in the order of their keys."""
        ...

    async def commit(self, compares: Sequence[Compare], ops: Sequence[Op]) -> int:
        """Applies all of `ops` if all of `compares` hold; gives the store's revision then.

        When it returns, the write is durable. Cancelling the wait does not undo the write.
        Ops that change nothing make no revision. At most one op a key.
        Raises Conflict (nothing was applied; `details` name the key), LeaseNotFound, StorageFull,
        StoreUnusable, BadRequest (over a bound).
        """
        ...

    def watch(self, prefix: str, after_revision: int) -> AsyncGenerator[Change]:
        """Every change below `prefix` later than `after_revision`, once each, in order.

        Raises Compacted when the consumer is further behind than the store keeps changes.
        """
        ...

    async def grant(self, ttl_s: float) -> LeaseId:
        """A lease that ends `ttl_s` after it was last kept alive, and its keys with it.

        A restart of the store gives each lease its full time again.
        """
        ...

    async def keep_alive(self, lease: LeaseId) -> float:
        """Starts the lease's time anew; gives its seconds. Raises LeaseNotFound."""
        ...

    async def revoke(self, lease: LeaseId) -> None:
        """Ends a lease now. Raises LeaseNotFound."""
        ...

    async def close(self) -> None:
        """Finishes the commits under way, ends all watches, and lets go of the files."""
        ...


def check_transaction(ops: Sequence[Op]) -> None:
    """Raises BadRequest when a transaction is over a bound or names a key twice."""
    if len(ops) > MAX_TRANSACTION_OPS:
        raise BadRequest(
            f"a transaction holds at most {MAX_TRANSACTION_OPS} operations, not {len(ops)}"
        )
    seen: set[str] = set()
    for op in ops:
        if op.key in seen:
            raise BadRequest(f"a transaction names the key {op.key!r} twice")
        seen.add(op.key)
        if not 0 < len(op.key.encode()) <= MAX_KEY_BYTES:
            raise BadRequest(f"a key has 1 to {MAX_KEY_BYTES} bytes: {op.key[:64]!r}")
        if isinstance(op, Put) and len(op.value) > MAX_VALUE_BYTES:
            raise BadRequest(f"the value of {op.key!r} is over {MAX_VALUE_BYTES} bytes")
