"""What a local store holds, and what a transaction would do to it: no I/O, no clock, no waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from stoker.errors import Conflict
from stoker.store.base import (
    Change,
    Compacted,
    Compare,
    Delete,
    Entry,
    LeaseId,
    LeaseNotFound,
    Listing,
    Op,
    Put,
)

HISTORY_LIMIT = 4096  # changes kept for watchers; who is further behind lists again


@dataclass(frozen=True, slots=True)
class Batch:
    """The outcome of a transaction, decided but not yet visible."""

    revision: int
    changes: tuple[Change, ...] = ()
    granted: tuple[LeaseId, float] | None = None  # with its time to live in seconds
    revoked: LeaseId | None = None

    @property
    def empty(self) -> bool:
        return not self.changes and self.granted is None and self.revoked is None


class Keyspace:
    """Entries, leases and the most recent changes. `plan_*` decide, `apply` makes it so."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        leases: Iterable[tuple[LeaseId, float]] = (),
        revision: int = 0,
        *,
        history_limit: int = HISTORY_LIMIT,
    ) -> None:
        self.revision = revision
        self._entries = {entry.key: entry for entry in entries}
        self._leases = dict(leases)
        self._history: deque[Change] = deque(maxlen=history_limit)
        self._compacted = revision  # changes up to this revision are not kept

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def range(self, prefix: str) -> Listing:
        found = (entry for key, entry in self._entries.items() if key.startswith(prefix))
        return Listing(tuple(sorted(found, key=lambda entry: entry.key)), self.revision)

    def leases(self) -> dict[LeaseId, float]:
        """Time to live in seconds by lease."""
        return dict(self._leases)

    def after(self, revision: int) -> tuple[Change, ...]:
        """The changes later than `revision`, oldest first. Raises Compacted."""
        if revision < self._compacted:
            raise Compacted(
                f"changes after revision {revision} are no longer kept (the oldest is"
                f" {self._compacted + 1}); list the keys again and watch from that revision",
                details={"compacted_revision": self._compacted, "revision": self.revision},
            )
        newer = takewhile(lambda change: change.revision > revision, reversed(self._history))
        return tuple(newer)[::-1]

    def plan(self, compares: Sequence[Compare], ops: Sequence[Op]) -> Batch:
        """What a transaction would change. Raises Conflict, LeaseNotFound."""
        for compare in compares:
            entry = self._entries.get(compare.key)
            found = entry.mod_revision if entry else 0
            if found != compare.mod_revision:
                raise Conflict(
                    f"{compare.key!r} was changed by someone else; read it again",
                    details={
                        "key": compare.key,
                        "expected_revision": compare.mod_revision,
                        "found_revision": found,
                    },
                )
        revision = self.revision + 1
        changes = tuple(change for op in ops if (change := self._change(op, revision)) is not None)
        return Batch(revision if changes else self.revision, changes)

    def plan_grant(self, lease: LeaseId, ttl_s: float) -> Batch:
        assert lease not in self._leases
        return Batch(self.revision, granted=(lease, ttl_s))

    def plan_revoke(self, lease: LeaseId) -> Batch:
        """Ends a lease and deletes its keys. Raises LeaseNotFound."""
        self.ttl_s(lease)
        revision = self.revision + 1
        changes = tuple(
            Change(revision, entry.key, None)
            for entry in self.range("").entries
            if entry.lease == lease
        )
        return Batch(revision if changes else self.revision, changes, revoked=lease)

    def ttl_s(self, lease: LeaseId) -> float:
        try:
            return self._leases[lease]
        except KeyError:
            raise LeaseNotFound(f"lease {lease} has ended; grant a new one") from None

    def apply(self, batch: Batch) -> None:
        """Makes a planned batch visible; nothing may have been applied since it was planned."""
        assert batch.revision == self.revision + bool(batch.changes)
        for change in batch.changes:
            if change.entry is None:
                del self._entries[change.key]
            else:
                self._entries[change.key] = change.entry
            if len(self._history) == self._history.maxlen:
                self._compacted = self._history[0].revision
            self._history.append(change)
        if batch.granted is not None:
            lease, ttl_s = batch.granted
            self._leases[lease] = ttl_s
        if batch.revoked is not None:
            del self._leases[batch.revoked]
        self.revision = batch.revision

    def _change(self, op: Op, revision: int) -> Change | None:
        old = self._entries.get(op.key)
        match op:
            case Delete():
                return Change(revision, op.key, None) if old else None
            case Put():
                if op.lease is not None:
                    self.ttl_s(op.lease)
                created = old.create_revision if old else revision
                return Change(
                    revision, op.key, Entry(op.key, op.value, created, revision, op.lease)
                )
