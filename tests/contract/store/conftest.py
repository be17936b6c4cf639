"""The stores that the conformance suite runs over, and a clock that moves when told to."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stoker.store.base import Store
from stoker.store.memory import MemoryStore
from stoker.store.sqlite import SqliteStore

HISTORY_LIMIT = 32


@dataclass
class FakeTimer:
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class FakeClock:
    """A `Clock` that stands still until `advance`."""

    now: float = 1000.0
    _timers: list[tuple[float, int, FakeTimer]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], object], /) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
        self.now = until


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


OpenStore = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path
) -> AsyncIterator[Store]:
    """Each implementation in turn, empty, with a short history."""
    opened: Store
    if request.param == "memory":
        opened = MemoryStore(clock=clock, history_limit=HISTORY_LIMIT)
    else:
        opened = await SqliteStore.open(
            tmp_path / "stoker.db", clock=clock, history_limit=HISTORY_LIMIT
        )
    yield opened
    await opened.close()


@pytest.fixture
def history_limit() -> int:
    return HISTORY_LIMIT
