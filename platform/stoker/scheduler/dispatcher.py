"""The dispatcher: the single owner of scheduling state.

Everything that happens becomes an event and goes through `_handle`: the view observes it, `decide`
says what to do, the view follows the actions, and their effects are set off. `_handle` never
awaits, so no two events ever see each other half-done.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import structlog

from stoker.domain import FunctionName, InstanceId, PhaseName, RequestId, Revision
from stoker.errors import BadRequest, InstanceLost, ShuttingDown
from stoker.scheduler import observe
from stoker.scheduler.calls import NodeCalls
from stoker.scheduler.events import (
    Action,
    DeadlinePassed,
    Drain,
    Event,
    FirstToken,
    FunctionDeleted,
    Grant,
    InstanceExited,
    InstanceSuspected,
    LeaseReleased,
    NodeChanged,
    NodeLeft,
    Reject,
    RequestArrived,
    RequestCancelled,
    RevisionDeployed,
    ScaleRequested,
    Start,
    Stop,
)
from stoker.scheduler.lease import InstanceStatus, Lease, ScaleStatus
from stoker.scheduler.logs import FunctionLogs
from stoker.scheduler.nodes import NodeDirectory, Snapshot
from stoker.scheduler.policy import decide
from stoker.scheduler.pulse import Pulse
from stoker.scheduler.status import instance_status, scale_status, settled
from stoker.scheduler.timeline import lease_phases
from stoker.scheduler.view import View
from stoker_runtime.contract import MAX_PREPARED

SCALE_WAIT_S = 120.0  # how long `scale` waits for what it asked for
MAX_REPLICAS = 64  # an operator's request beyond this is a typing error

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """The other side of a `Waiter`: who to wake."""

    ticket: RequestId
    request_id: RequestId
    function: FunctionName
    arrived_at: float
    granted: asyncio.Future[Lease]


class Dispatcher:
    """Implements `Leasing` on the nodes of a `NodeDirectory`."""

    def __init__(
        self,
        directory: NodeDirectory,
        tasks: asyncio.TaskGroup,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._calls = NodeCalls(directory, tasks, self._handle)
        self._clock = clock
        self._wall_clock = wall_clock
        self._logs = FunctionLogs(directory.client)
        self._view = View()
        self._inbox: deque[Event] = deque()
        self._handling = False
        self._waiting: dict[RequestId, _Waiting] = {}
        self._tickets = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._changed = Pulse()
        self._closed = False

    @property
    def view(self) -> View:
        return self._view

    async def run(self) -> None:
        """Follows the nodes until cancelled; then no call to them is under way any more."""
        async with aclosing(self._directory.events()) as events:
            try:
                async for event in events:
                    if isinstance(event, Snapshot):
                        self._reconcile(event)
                        continue
                    joined = isinstance(event, NodeChanged) and event.node not in self._view.nodes
                    self._handle(event)
                    if isinstance(event, NodeLeft):
                        self._reconcile(Snapshot(event.node, frozenset()))
                    elif joined:
                        self._expect_everywhere()
            finally:
                await self._calls.cancel()

    def close(self) -> None:
        """Turns away who waits and who comes. Leases that are out run on."""
        self._closed = True
        for waiting in list(self._waiting.values()):
            if not waiting.granted.done():
                waiting.granted.set_exception(ShuttingDown("the platform is shutting down"))
            self._handle(RequestCancelled(waiting.function, waiting.ticket))
        if self._timer is not None:
            self._timer.cancel()

    # --- Leasing -----------------------------------------------------------------------------

    @asynccontextmanager
    async def lease(
        self,
        request_id: RequestId,
        revision: Revision,
        *,
        arrived_at: float,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Lease]:
        lease = await self._granted(request_id, revision, arrived_at, timeout_s)
        try:
            yield lease
        finally:
            self._handle(LeaseReleased(revision.function, lease.instance_id))

    def prefilled(self, lease: Lease, prefill_ms: float, prompt_tokens: int) -> None:  # noqa: ARG002
        if lease.cold:
            self._handle(FirstToken(lease.revision.function, lease.instance_id, prefill_ms))

    def lost(self, lease: Lease) -> None:
        self._handle(InstanceSuspected(lease.revision.function, lease.instance_id))

    async def deployed(self, revision: Revision) -> None:
        self._handle(RevisionDeployed(revision))
        self._expect_everywhere()

    async def deleted(self, function: FunctionName) -> None:
        self._handle(FunctionDeleted(function))
        self._logs.forget(function)

    async def scale(self, revision: Revision, replicas: int) -> ScaleStatus:
        if not 0 <= replicas <= MAX_REPLICAS:
            raise BadRequest(f"replicas: {replicas} is not in 0..{MAX_REPLICAS}", param="replicas")
        function = revision.function
        self._handle(ScaleRequested(revision, replicas))
        failures = self._view.pools[function].breaker.failures
        deadline = self._clock() + SCALE_WAIT_S
        while not settled(self._view.pools.get(function), replicas):
            pool = self._view.pools.get(function)
            if pool and pool.breaker.failures > failures and pool.breaker.cause:
                raise pool.breaker.cause
            if not await self._until_changed(deadline - self._clock()):
                break
        return scale_status(function, self._view.pools.get(function), replicas)

    def instances(self, function: FunctionName | None = None) -> tuple[InstanceStatus, ...]:
        now, wall = self._clock(), self._wall_clock()
        return tuple(
            instance_status(pool, instance, now, wall)
            for name, pool in sorted(self._view.pools.items())
            if function in (None, name)
            for instance in sorted(pool.instances.values(), key=lambda i: i.requested_at)
        )

    def waiting(self, function: FunctionName) -> int:
        pool = self._view.pools.get(function)
        return len(pool.queue) if pool else 0

    async def changed(self) -> None:
        """Returns when the next event was handled."""
        await self._changed.wait()

    def logs(self, function: FunctionName, *, follow: bool) -> AsyncGenerator[str]:
        return self._logs.lines(function, follow=follow)

    # --- the one way in ----------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Observes, decides and acts. Events that effects cause are handled after this one."""
        self._inbox.append(event)
        if self._handling:
            return
        self._handling = True
        try:
            while self._inbox:
                self._handle_one(self._inbox.popleft())
        finally:
            self._handling = False
        self._arm_timer()
        self._changed.beat()

    def _handle_one(self, event: Event) -> None:
        now = self._clock()
        self._view = observe.observe(self._view, event, now)
        for action in decide(self._view, event, now):
            if not (self._closed and isinstance(action, Start)):
                self._act(action, now)

    def _act(self, action: Action, now: float) -> None:
        match action:
            case Grant():
                self._view = observe.enact(self._view, action, now)
                self._grant(action, now)
            case Reject():
                self._view = observe.enact(self._view, action, now)
                waiting = self._waiting.get(action.request_id)
                if waiting and not waiting.granted.done():
                    waiting.granted.set_exception(action.error)
            case Start():
                instance_id = InstanceId(f"{action.revision.id}-{uuid.uuid4().hex[:8]}")
                self._view = observe.enact(self._view, action, now, instance_id)
                self._logs.note(action.revision.function, instance_id, action.node)
                self._calls.start(action, instance_id)
            case Stop():
                instance = self._view.pools[action.function].instances[action.instance_id]
                self._view = observe.enact(self._view, action, now)
                self._calls.stop(instance, action.reason)
            case Drain():
                self._view = observe.enact(self._view, action, now)

    # --- leases -----------------------------------------------------------------------------

    async def _granted(
        self, request_id: RequestId, revision: Revision, arrived_at: float, timeout_s: float | None
    ) -> Lease:
        """Waits for a slot. A waiter that is cancelled leaves the queue, and gives back the slot
        if it was granted in the same moment."""
        if self._closed:
            raise ShuttingDown("the platform is shutting down")
        # Clients choose request ids and may repeat them; a ticket is ours and unique.
        ticket = RequestId(f"{request_id}#{next(self._tickets)}")
        granted: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = _Waiting(ticket, request_id, revision.function, arrived_at, granted)
        bound_s = revision.startup.timeout_s if timeout_s is None else timeout_s
        try:
            self._handle(RequestArrived(ticket, revision, arrived_at, bound_s))
            return await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._handle(LeaseReleased(revision.function, granted.result().instance_id))
            self._handle(RequestCancelled(revision.function, ticket))
            raise
        finally:
            del self._waiting[ticket]

    def _grant(self, action: Grant, now: float) -> None:
        waiting = self._waiting.get(action.request_id)
        if waiting is None or waiting.granted.done():
            # It was cancelled in this very turn of the loop.
            self._inbox.append(LeaseReleased(action.function, action.instance_id))
            return
        instance = self._view.pools[action.function].instances[action.instance_id]
        assert instance.socket is not None
        assert instance.ready_at is not None
        prefill = self._view.calibration.phase_ms.get(
            (instance.node, PhaseName.PREFILL, instance.revision.id)
        )
        waiting.granted.set_result(
            Lease(
                request_id=waiting.request_id,
                instance_id=instance.id,
                revision=instance.revision,
                socket=instance.socket,
                cold=instance.ready_at > waiting.arrived_at,
                arrived_at=waiting.arrived_at,
                granted_at=now,
                phases=lease_phases(instance, waiting.arrived_at, now),
                predicted_prefill_ms=prefill,
            )
        )

    def _expect_everywhere(self) -> None:
        """Tells every node what was deployed last, so that its blank workers are ready for it."""
        revisions = sorted(
            (p.revision for p in self._view.pools.values() if p.revision.checkpoint),
            key=lambda revision: revision.created_at,
        )
        for revision in revisions[-MAX_PREPARED:]:
            assert revision.checkpoint is not None
            for node in self._view.nodes:
                self._calls.expect(node, revision.checkpoint.digest)

    def _reconcile(self, snapshot: Snapshot) -> None:
        """What a node does not list is gone; what we do not know is an orphan and is stopped."""
        known = {
            i.id: i
            for pool in self._view.pools.values()
            for i in pool.instances.values()
            if i.node == snapshot.node
        }
        for instance_id, instance in known.items():
            if instance_id not in snapshot.instances:
                cause = InstanceLost(f"node {snapshot.node!r} lost instance {instance_id}")
                self._handle(InstanceExited(instance.revision.function, instance_id, cause))
        for orphan in snapshot.instances - known.keys():
            self._calls.stop_orphan(snapshot.node, orphan)

    # --- time and change -----------------------------------------------------------------------

    def _arm_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        deadline = observe.next_deadline(self._view, now)
        if deadline is not None and not self._closed:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(deadline - now, self._handle, DeadlinePassed())

    async def _until_changed(self, timeout_s: float) -> bool:
        """Waits for the next event; False when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
