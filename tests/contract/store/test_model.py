"""Random histories: each store does what a few lines of obviously right code do."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stoker.errors import Conflict
from stoker.store.base import Change, Compare, Delete, Entry, LeaseId, LeaseNotFound, Put, Store
from stoker.store.memory import MemoryStore
from stoker.store.sqlite import SqliteStore

KEYS = st.sampled_from(["a", "a/1", "a/2", "b", "b/1"])
TTL_S = 10.0


class StillClock:
    """Time never passes: leases end only when they are revoked."""

    class _Timer:
        def cancel(self) -> None:
            return

    def time(self) -> float:
        return 0.0

    def call_at(self, when: float, callback: object, /) -> _Timer:
        return self._Timer()


class Histories(RuleBasedStateMachine):
    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.revision = 0
        self.entries: dict[str, Entry] = {}
        self.leases: list[LeaseId] = []
        self.changes: list[Change] = []

    async def make(self) -> Store:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.store = self.runner.run(self.make())

    def expect(self, changes: list[Change]) -> None:
        for change in changes:
            self.changes.append(change)
            if change.entry is None:
                del self.entries[change.key]
            else:
                self.entries[change.key] = change.entry
        self.revision += bool(changes)

    @rule(
        compares=st.lists(st.tuples(KEYS, st.integers(-1, 1)), max_size=2),
        ops=st.dictionaries(KEYS, st.one_of(st.none(), st.binary(max_size=3)), max_size=4),
        lease=st.one_of(st.none(), st.integers(0, 3)),
    )
    def commit(
        self,
        compares: list[tuple[str, int]],
        ops: dict[str, bytes | None],
        lease: int | None,
    ) -> None:
        bound = LeaseId(1) if lease is not None else None  # an unknown one, unless we have some
        if lease is not None and self.leases:
            bound = self.leases[lease % len(self.leases)]
        mods = {key: entry.mod_revision for key, entry in self.entries.items()}
        wanted = [Compare(key, max(mods.get(key, 0) + off, 0)) for key, off in compares]
        transaction = [
            Delete(key) if value is None else Put(key, value, bound) for key, value in ops.items()
        ]
        holds = all(mods.get(compare.key, 0) == compare.mod_revision for compare in wanted)
        puts = any(value is not None for value in ops.values())
        unknown = puts and bound is not None and bound not in self.leases
        work = self.store.commit(wanted, transaction)
        if not holds:
            with pytest.raises(Conflict):
                self.runner.run(work)
            return
        if unknown:
            with pytest.raises(LeaseNotFound):
                self.runner.run(work)
            return
        now = self.revision + 1
        changes = []
        for key, value in ops.items():
            if value is not None:
                old = self.entries.get(key)
                created = old.create_revision if old else now
                changes.append(Change(now, key, Entry(key, value, created, now, bound)))
            elif key in self.entries:
                changes.append(Change(now, key, None))
        self.expect(changes)
        assert self.runner.run(work) == self.revision

    @rule()
    def grant(self) -> None:
        self.leases.append(self.runner.run(self.store.grant(TTL_S)))

    @rule(which=st.integers(0, 10))
    def revoke(self, which: int) -> None:
        if not self.leases:
            return
        lease = self.leases.pop(which % len(self.leases))
        bound = sorted(key for key, entry in self.entries.items() if entry.lease == lease)
        self.expect([Change(self.revision + 1, key, None) for key in bound])
        self.runner.run(self.store.revoke(lease))

    @rule(prefix=st.sampled_from(["", "a", "a/", "c"]))
    def listing(self, prefix: str) -> None:
        listing = self.runner.run(self.store.range(prefix))
        expected = [self.entries[key] for key in sorted(self.entries) if key.startswith(prefix)]
        assert (list(listing.entries), listing.revision) == (expected, self.revision)

    @rule(after=st.integers(0, 40), prefix=st.sampled_from(["", "a/"]))
    def watch(self, after: int, prefix: str) -> None:
        start = max(after, self.oldest())
        expected = [c for c in self.changes if c.revision > start and c.key.startswith(prefix)]

        async def collect() -> list[Change]:
            watch = self.store.watch(prefix, start)
            try:
                return [await anext(watch) for _ in expected]
            finally:
                await watch.aclose()

        assert self.runner.run(collect()) == expected

    def oldest(self) -> int:
        """The revision that a reopening forgot the changes up to."""
        return 0

    @invariant()
    def every_key_is_as_expected(self) -> None:
        if not hasattr(self, "store"):
            return
        for key in ("a", "a/1", "a/2", "b", "b/1"):
            assert self.runner.run(self.store.get(key)) == self.entries.get(key)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.runner.run(self.store.close())
        self.runner.close()


class MemoryHistories(Histories):
    async def make(self) -> Store:
        return MemoryStore(clock=StillClock())


class SqliteHistories(Histories):
    """The same, closed and opened again at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.forgotten = 0

    async def make(self) -> Store:
        return await SqliteStore.open(Path(self.folder.name) / "s.db", clock=StillClock())

    @rule()
    def reopen(self) -> None:
        self.runner.run(self.store.close())
        self.store = self.runner.run(self.make())
        self.forgotten = self.revision

    def oldest(self) -> int:
        return self.forgotten

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


BOUNDS = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestMemoryHistories = MemoryHistories.TestCase
TestMemoryHistories.settings = BOUNDS
TestSqliteHistories = SqliteHistories.TestCase
TestSqliteHistories.settings = BOUNDS
