"""The heart of the gateway: lease a slot, open one stream to its instance, wait for the start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from stoker.domain import Phase, PhaseName, Revision, Timeline
from stoker.errors import InstanceLost, StokerError
from stoker.gateway.call import Call
from stoker.gateway.exchange import Exchange
from stoker.gateway.instances import Instances, Unreachable
from stoker.gateway.reply import Reply
from stoker.gateway.timelines import Timelines
from stoker.scheduler.lease import Lease, Leasing
from stoker.telemetry import Metrics

E = TypeVar("E")

MAX_ATTEMPTS = 2  # instances a request is sent to, as long as none has answered


@dataclass(frozen=True, slots=True)
class Invoker:
    """Sends exchanges to instances, one lease each, and records how they started."""

    leasing: Leasing
    instances: Instances
    timelines: Timelines
    metrics: Metrics
    clock: Callable[[], float]

    @asynccontextmanager
    async def answer(
        self,
        call: Call,
        revision: Revision,
        exchange: Exchange[E],
        timeout_s: float | None = None,
    ) -> AsyncIterator[Answer[E]]:
        """Yields the answer at its first event. Leaving the context releases the lease and, if
        the answer was not complete, cancels the instance's work.

        Raises everything that `Leasing.lease` and `Instances.open` raise.
        """
        async with AsyncExitStack() as held:
            yield await self._begin(held, call, revision, exchange, timeout_s)

    async def _begin(
        self,
        held: AsyncExitStack,
        call: Call,
        revision: Revision,
        exchange: Exchange[E],
        timeout_s: float | None,
    ) -> Answer[E]:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            async with AsyncExitStack() as stack:
                lease = await self._lease(stack, call, revision, timeout_s)
                try:
                    reply = await stack.enter_async_context(self.instances.open(lease, exchange))
                    first = await _first(reply, exchange)
                except StokerError as error:
                    self._failed(call, lease, error)
                    if attempt == MAX_ATTEMPTS or not _repeatable(error, exchange):
                        raise
                else:
                    self._started(call, lease, exchange)
                    held.push_async_exit(stack.pop_all())
                    return Answer(lease, reply, first, self.leasing)
            exchange.again()
        raise AssertionError("the last attempt returns or raises")

    async def _lease(
        self, stack: AsyncExitStack, call: Call, revision: Revision, timeout_s: float | None
    ) -> Lease:
        try:
            lease = await stack.enter_async_context(
                self.leasing.lease(
                    call.request_id, revision, arrived_at=call.arrived_at, timeout_s=timeout_s
                )
            )
        except StokerError as error:
            call.refused(error)
            raise
        call.granted(lease)
        return lease

    def _started(self, call: Call, lease: Lease, exchange: Exchange[E]) -> None:
        call.timeline = timeline = _timeline(call, lease, self.clock())
        # The first event goes out in this turn of the loop, the books are kept in the next.
        asyncio.get_running_loop().call_soon(self._book, timeline, lease, exchange.prompt_tokens)

    def _book(self, timeline: Timeline, lease: Lease, prompt_tokens: int) -> None:
        self.timelines.record(timeline)
        self.metrics.started(timeline)
        self.leasing.prefilled(lease, timeline.phases[-1].duration_ms, prompt_tokens)

    def _failed(self, call: Call, lease: Lease, error: StokerError) -> None:
        self.timelines.record(_timeline(call, lease, self.clock()))
        if isinstance(error, InstanceLost):
            self.leasing.lost(lease)


class Answer(Generic[E]):
    """An answer whose first event has arrived: batches of events, without end before the last.

    Iterating raises InstanceLost, and the error that the instance reports.
    """

    def __init__(self, lease: Lease, reply: Reply[E], first: list[E], leasing: Leasing) -> None:
        self._lease = lease
        self._reply = reply
        self._first: list[E] | None = first
        self._leasing = leasing

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[E]:
        if self._first is not None:
            batch, self._first = self._first, None
            return batch
        try:
            batch = await self._reply.read()
        except InstanceLost:
            self._leasing.lost(self._lease)
            raise
        if not batch:
            raise StopAsyncIteration
        return batch


async def _first(reply: Reply[E], exchange: Exchange[E]) -> list[E]:
    """The first batch that holds something a client could see, from there on."""
    while True:
        batch = await reply.read()
        for position, event in enumerate(batch):
            if exchange.begins(event):
                return batch[position:]


def _repeatable(error: StokerError, exchange: Exchange[E]) -> bool:
    """Nothing was answered yet: a second instance may answer, if sending twice does no harm."""
    return isinstance(error, Unreachable) or (
        isinstance(error, InstanceLost) and exchange.repeatable
    )


def _timeline(call: Call, lease: Lease, now: float) -> Timeline:
    granted_ms = (lease.granted_at - call.arrived_at) * 1000
    total_ms = (now - call.arrived_at) * 1000
    prefill = Phase(
        PhaseName.PREFILL,
        start_ms=granted_ms,
        duration_ms=total_ms - granted_ms,
        predicted_ms=lease.predicted_prefill_ms,
    )
    return Timeline(
        request_id=call.request_id,
        function=lease.revision.function,
        revision=lease.revision.id,
        cold=lease.cold,
        total_ms=total_ms,
        phases=(*lease.phases, prefill),
    )
