"""The agent of one node: brings instances up, supervises them and reports what is true.

It decides nothing: it starts what it is told to, on workers from its warm pool, and says how long
each phase took. What it knows it can rebuild from what runs, so it keeps no state on disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal

import structlog

from stoker.domain import Digest, InstanceId, NodeId, PhaseName
from stoker.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    InstanceNotFound,
    ShuttingDown,
    StokerError,
)
from stoker.lifecycle import WORKER, WorkerEvent, WorkerState, advance
from stoker.node.drivers.base import Driver, Worker
from stoker.node.held import Held
from stoker.node.loading import LoadRefused, load_arriving, overlapped, prepare
from stoker.node.logs import LogBuffer
from stoker.node.subscribers import Subscribers
from stoker.node.tiers import Tiers
from stoker.node.warm_pool import WarmPool
from stoker.node.wire import (
    AgentEvent,
    Exited,
    MeasuredPhase,
    NodeState,
    Running,
    Started,
    StartInstance,
)
from stoker_runtime.contract import MAX_PREPARED, LoadRequest, WorkerError

STOP_GRACE_S = 10.0  # for requests under way, when an instance is stopped
KEPT_LOGS = 64  # logs of instances that are gone
PERMANENT = (LoadRefused, CheckpointNotFound, CheckpointInvalid)  # no second start can help
EVENT_BACKLOG = 10_000  # events a control plane may be behind before it must reconnect

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Instance:
    """One instance while it exists; only the agent's loop touches it."""

    request: StartInstance
    state: WorkerState = WorkerState.BLANK
    worker: Worker | None = None
    started: Started | None = None
    bring_up: asyncio.Task[None] | None = None
    stopping: bool = False
    log: LogBuffer | None = None
    files: AsyncExitStack = field(default_factory=AsyncExitStack)  # held as long as it exists


class Agent:
    """Owns the workers of one node."""

    def __init__(
        self,
        node_id: NodeId,
        driver: Driver,
        tiers: Tiers,
        *,
        warm_pool: int,
        memory_bytes: int,
        name_worker: Callable[[], str],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.node_id = node_id
        self.tiers = tiers
        self._memory_bytes = memory_bytes
        self._tasks = tasks
        self._instances: dict[InstanceId, _Instance] = {}
        self._past_logs: dict[InstanceId, LogBuffer] = {}
        self._resident: dict[Digest, int] = {}
        self._subscribers = Subscribers()
        self._closed = False
        self._expected: OrderedDict[Digest, None] = OrderedDict()
        self._pool = WarmPool(
            driver, warm_pool, name_worker, self._prepare, self._publish_node, tasks
        )

    def open(self) -> None:
        """Begins to fill the warm pool."""
        self._pool.refill()

    async def close(self, grace_s: float) -> None:
        """Stops every instance and blank worker; requests under way get `grace_s`."""
        self._closed = True
        running = [i for i in self._instances if not self._instances[i].stopping]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pool.close(0))
            for instance_id in running:
                group.create_task(self._end(self._instances[instance_id], grace_s))
        await self.tiers.close()
        self._subscribers.publish(None)

    def expect(self, checkpoint: Digest) -> None:
        """Has blank workers made ready for a checkpoint that may be started soon; the
        `MAX_PREPARED` that were expected or started last count."""
        if self._remember(checkpoint):
            self._pool.prepare_all()

    def start(self, request: StartInstance) -> None:
        """Begins to bring an instance up; `Started` or `Exited` follows as an event.

        Raises ShuttingDown once the agent closes.
        """
        if request.instance_id in self._instances:
            return  # the message was repeated
        if self._closed:
            raise ShuttingDown(f"node {self.node_id!r} is shutting down")
        instance = _Instance(request)
        self._instances[request.instance_id] = instance
        instance.bring_up = self._tasks.create_task(
            self._bring_up(instance), name=f"bring up {request.instance_id}"
        )

    def stop(self, instance_id: InstanceId, grace_s: float = STOP_GRACE_S) -> None:
        """Begins to stop an instance; `Exited` follows as an event. Stopping twice is fine."""
        instance = self._instances.get(instance_id)
        if instance is None:
            raise InstanceNotFound(f"no instance {instance_id!r} on node {self.node_id!r}")
        if not instance.stopping:
            instance.stopping = True
            self._tasks.create_task(self._end(instance, grace_s), name=f"stop {instance_id}")

    def logs(self, instance_id: InstanceId, *, follow: bool) -> AsyncGenerator[str]:
        instance = self._instances.get(instance_id)
        found = instance.log if instance else self._past_logs.get(instance_id)
        if found is None:
            raise InstanceNotFound(f"no log of an instance {instance_id!r} on this node")
        return found.lines(follow=follow)

    async def events(self) -> AsyncGenerator[AgentEvent]:
        """Yields the present state, then every change, until the agent closes or the reader falls
        `EVENT_BACKLOG` events behind."""
        queue: asyncio.Queue[AgentEvent | None] = asyncio.Queue(EVENT_BACKLOG)
        self._subscribers.queues.add(queue)
        snapshot: list[AgentEvent] = [self._node_state()]
        snapshot.extend(i.started for i in self._instances.values() if i.started)
        snapshot.append(Running(instances=tuple(self._instances)))
        try:
            for event in snapshot:
                yield event
            while (event_or_end := await queue.get()) is not None:
                yield event_or_end
        finally:
            self._subscribers.queues.discard(queue)

    def _remember(self, checkpoint: Digest) -> bool:
        known = checkpoint in self._expected
        self._expected[checkpoint] = None
        self._expected.move_to_end(checkpoint)
        while len(self._expected) > MAX_PREPARED:
            self._expected.popitem(last=False)
        return not known

    async def _prepare(self, worker: Worker) -> None:
        paths = []
        for digest in tuple(self._expected):
            try:
                path = await self.tiers.cache.find(digest)
            except StokerError as error:
                log.info("not prepared for", checkpoint=digest, error=error.message)
                continue
            if path is not None:
                paths.append(path)
        if paths:
            await prepare(worker, paths)

    # --- one instance's life -----------------------------------------------------------------

    async def _bring_up(self, instance: _Instance) -> None:
        request = instance.request
        try:
            with self._pool.start_under_way():
                started = await self._start(instance)
        except (StokerError, LoadRefused) as error:
            await self._gone(instance, _as_worker_error(error), isinstance(error, PERMANENT))
            return
        if instance.stopping:
            return  # whoever stops it reports it
        instance.state = advance(WORKER, instance.state, WorkerEvent.LOADED)
        instance.started = started
        self._subscribers.publish(started)
        if request.checkpoint:
            self._remember(request.checkpoint)
            self.tiers.loaded(request.checkpoint, started.phases)
            await self._measure(request.checkpoint)
        assert instance.worker is not None
        ended = await instance.worker.wait()
        if not instance.stopping:
            await self._gone(
                instance,
                WorkerError(
                    type="server_error",
                    code="instance_lost",
                    message=f"instance {request.instance_id} ended unexpectedly ({ended})",
                ),
                permanent=False,
            )

    async def _measure(self, checkpoint: Digest) -> None:
        """Says how much of it is in memory now."""
        try:
            self._resident[checkpoint] = await self.tiers.cache.resident_bytes(checkpoint)
        except StokerError as error:  # it was deleted or changed: what runs has it mapped
            log.warning("not measured", checkpoint=checkpoint, error=error.message)
            self._resident.pop(checkpoint, None)
        self._publish_node()

    async def _start(self, instance: _Instance) -> Started:
        """Claims a worker while the files are brought to the node, then loads them."""
        request = instance.request
        began = time.monotonic()
        fetching = asyncio.create_task(self._hold(instance), name=f"files of {request.instance_id}")
        try:
            claimed = await self._pool.claim()
            instance.worker, instance.log = claimed.worker, claimed.worker.log
            instance.state = advance(WORKER, instance.state, WorkerEvent.CLAIMED)
            provisioned = time.monotonic()
            checkpoint, source = await fetching
        finally:
            fetching.cancel()
            await asyncio.wait([fetching])  # what it holds is let go by whoever ends the instance
        readable = time.monotonic()
        arrival = checkpoint.arrival if checkpoint else None
        kept = checkpoint.kept if checkpoint else None
        phases, ready = await load_arriving(
            claimed.worker,
            LoadRequest(
                instance_id=request.instance_id,
                function=request.function,
                revision=request.revision,
                engine=request.engine,
                checkpoint_path=str(checkpoint.path) if checkpoint else None,
                arriving=kept is not None and not kept.done(),
                source_path=str(source.path) if source else None,
                handler=request.handler,
                args=request.args,  # type: ignore[arg-type]  # checked by the model
                options=request.options,
                env=request.env,
                threads=request.threads,
            ),
            arrival,
        )
        fetch = MeasuredPhase(name=PhaseName.FETCH, duration_ms=(readable - provisioned) * 1e3)
        if arrival is not None:
            fetch, phases = overlapped(fetch, phases, await asyncio.shield(arrival), readable)
        how: Literal["claim", "spawn"] = "claim" if claimed.warm else "spawn"
        return Started(
            instance_id=request.instance_id,
            function=request.function,
            socket=claimed.worker.socket,
            pid=claimed.worker.pid,
            provisioned=how,
            phases=(
                MeasuredPhase(name=PhaseName.PROVISION, duration_ms=(provisioned - began) * 1e3),
                fetch,
                *phases,
            ),
            facts=ready.facts | {"engine": ready.engine, "context_tokens": ready.context_tokens},
        )

    async def _hold(self, instance: _Instance) -> tuple[Held | None, Held | None]:
        """Brings what the instance needs to this node, for as long as it exists."""
        checkpoint, source = [
            await instance.files.enter_async_context(self.tiers.hold(digest)) if digest else None
            for digest in (instance.request.checkpoint, instance.request.source)
        ]
        if source is not None and source.kept is not None:
            await asyncio.shield(source.kept)  # a handler opens its files itself
        return checkpoint, source

    async def _end(self, instance: _Instance, grace_s: float) -> None:
        instance.stopping = True
        if instance.bring_up is not None and instance.started is None:
            instance.bring_up.cancel()
            await asyncio.wait([instance.bring_up])
        if instance.worker is not None:
            instance.state = advance(WORKER, instance.state, WorkerEvent.TERMINATED)
            await instance.worker.stop(grace_s if instance.started else 0)
        await self._gone(instance, None, permanent=False)

    async def _gone(self, instance: _Instance, error: WorkerError | None, permanent: bool) -> None:
        """Ends what is left of it, forgets it and says so."""
        instance_id = instance.request.instance_id
        if instance.worker is not None:
            await instance.worker.stop(0)
            instance.state = advance(WORKER, instance.state, WorkerEvent.EXITED)
        await instance.files.aclose()
        if self._instances.pop(instance_id, None) is None:
            return
        if instance.log is not None:
            self._past_logs[instance_id] = instance.log
            while len(self._past_logs) > KEPT_LOGS:
                del self._past_logs[next(iter(self._past_logs))]
        tail = instance.log.tail() if instance.log and error else ()
        self._subscribers.publish(
            Exited(
                instance_id=instance_id,
                function=instance.request.function,
                error=error,
                permanent=permanent,
                log_tail=tail,
            )
        )

    # --- what it reports ---------------------------------------------------------------------

    def _node_state(self) -> NodeState:
        return NodeState(
            node_id=self.node_id,
            memory_bytes=self._memory_bytes,
            blank_workers=self._pool.ready,
            starting_workers=self._pool.starting,
            warm_pool_size=self._pool.size,
            resident_bytes=self._resident,
        )

    def _publish_node(self) -> None:
        self._subscribers.publish(self._node_state())


def _as_worker_error(error: StokerError | LoadRefused) -> WorkerError:
    if isinstance(error, LoadRefused):
        return error.error
    return WorkerError(
        type=error.type, code=error.code, message=error.message, details=error.details
    )
