"""What a node knows of one artifact: its copy, and the fetch of it that is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stoker.domain import Digest
from stoker.errors import StokerError
from stoker.lifecycle import CopyState
from stoker.node.eviction import Valued, savings
from stoker.node.held import Arrived
from stoker.node.wire import CopyInfo


@dataclass(slots=True)
class Arrival:
    """The fetch of a copy that is under way, and what those who wait for it wait on."""

    task: asyncio.Task[None] | None = None
    readable: asyncio.Future[None] = field(default_factory=asyncio.Future)
    arrived: asyncio.Future[Arrived] = field(default_factory=asyncio.Future)
    kept: asyncio.Future[None] = field(default_factory=asyncio.Future)
    stopping: bool = False

    def begin(self) -> None:
        """It can be opened."""
        if not self.readable.done():
            self.readable.set_result(None)

    def end(self, arrived: Arrived) -> None:
        """The last byte has come."""
        if not self.arrived.done():
            self.arrived.set_result(arrived)

    def keep(self) -> None:
        """It is on the disk for good."""
        self.begin()
        if not self.kept.done():
            self.kept.set_result(None)

    def fail(self, error: StokerError) -> None:
        """What has not happened will not."""
        for future in (self.readable, self.arrived, self.kept):
            if not future.done():
                future.set_exception(error)
                future.exception()  # it may be that nobody waits any more


@dataclass(slots=True, eq=False)
class Copy:
    """What is known of one artifact on this node; only the event loop touches it."""

    digest: Digest
    worth: Valued[Digest]  # whose bytes are those that it takes of the budget
    state: CopyState = CopyState.ABSENT
    holders: int = 0
    pinned: bool = False
    arrival: Arrival | None = None
    last_used_at: float | None = None  # Unix seconds
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)  # while files come or go

    def may_go(self) -> bool:
        """Whether there is something of it, and nobody needs it."""
        return not (self.holders or self.pinned or self.state is CopyState.ARRIVING) and bool(
            self.worth.size_bytes
        )

    def is_gone(self) -> bool:
        """Whether it was given up and nobody has asked for it again."""
        return self.state is CopyState.ABSENT and not self.worth.size_bytes

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While it lasts the copy is not given up; when the last one leaves, its fetch stops."""
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1
            arrival = self.arrival
            if self.holders == 0 and arrival is not None and arrival.task is not None:
                arrival.stopping = True
                arrival.task.cancel()

    def info(self, uses: int, dram_bytes: int) -> CopyInfo:
        """For others; `uses` is how often copies of the cache were used so far."""
        return CopyInfo(
            digest=self.digest,
            state=self.state,
            ssd_bytes=self.worth.size_bytes,
            dram_bytes=dram_bytes,
            holders=self.holders,
            pinned=self.pinned,
            frequency=self.worth.frequency,
            value=savings(self.worth, uses),
            used_at=self.last_used_at,
        )
