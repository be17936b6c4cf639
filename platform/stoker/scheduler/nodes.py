"""The nodes that are registered now, and everything that their agents say, as one event stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from stoker.domain import InstanceId, NodeId
from stoker.errors import InstanceLost, NoCapacity, StartupFailed, StokerError
from stoker.node.client import NodeClient
from stoker.node.registration import PREFIX, Registration
from stoker.node.wire import AgentEvent, Exited, NodeState, Running, Started
from stoker.scheduler.events import Event, InstanceExited, InstanceReady, NodeChanged, NodeLeft
from stoker.scheduler.pulse import Pulse
from stoker.scheduler.view import Span
from stoker.store.base import Compacted, Store

BACKLOG = 10_000  # events not yet handled, over all nodes
RECONNECT_DELAYS_S = (0.05, 0.2, 1.0, 2.0)  # the last one repeats while the registration lives

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A node's agent was (re)connected and says what runs there; all else there is gone."""

    node: NodeId
    instances: frozenset[InstanceId]


@dataclass(frozen=True, slots=True)
class NodeLink:
    """One registered node."""

    registration: Registration
    client: NodeClient
    reader: asyncio.Task[None]


class NodeDirectory:
    """Follows registrations in the store and the agents behind them."""

    def __init__(
        self,
        store: Store,
        tasks: asyncio.TaskGroup,
        connect: Callable[[Path], NodeClient] = NodeClient,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._connect = connect
        self._links: dict[NodeId, NodeLink] = {}
        self._states: dict[NodeId, NodeState] = {}
        self._events: asyncio.Queue[Event | Snapshot] = asyncio.Queue(BACKLOG)
        self._changed = Pulse()
        self._membership = Pulse()

    def client(self, node: NodeId) -> NodeClient:
        """Raises NoCapacity when the node has gone."""
        link = self._links.get(node)
        if link is None:
            raise NoCapacity(f"node {node!r} is not registered any more")
        return link.client

    def states(self) -> tuple[NodeState, ...]:
        """What each node said last."""
        return tuple(self._states.values())

    async def warm(self) -> None:
        """Returns when there is a node and every node's warm pool is full."""
        while not self._states or not all(map(_is_warm, self._states.values())):
            await self._changed.wait()

    async def membership_changed(self) -> None:
        """Returns when an agent was (re)connected, or a node has left."""
        await self._membership.wait()

    async def events(self) -> AsyncGenerator[Event | Snapshot]:
        """Yields what happens on any node, until cancelled."""
        following = self._tasks.create_task(self._follow_registrations(), name="follow nodes")
        try:
            while True:
                yield await self._events.get()
        finally:
            following.cancel()
            for link in self._links.values():
                link.reader.cancel()
                await link.client.close()

    async def _follow_registrations(self) -> None:
        while True:
            listing = await self._store.range(PREFIX)
            await self._settle([Registration.model_validate_json(e.value) for e in listing.entries])
            try:
                async for change in self._store.watch(PREFIX, listing.revision):
                    if change.entry is None:
                        await self._leave(NodeId(change.key.removeprefix(PREFIX)))
                    else:
                        await self._join(Registration.model_validate_json(change.entry.value))
            except Compacted:
                continue  # list again, as the store asks

    async def _settle(self, registered: list[Registration]) -> None:
        for node in self._links.keys() - {r.node_id for r in registered}:
            await self._leave(node)
        for registration in registered:
            await self._join(registration)

    async def _join(self, registration: Registration) -> None:
        known = self._links.get(registration.node_id)
        if known is not None and known.registration == registration:
            return
        if known is not None:
            await self._leave(registration.node_id)
        client = self._connect(registration.socket)
        reader = self._tasks.create_task(
            self._read(registration.node_id, client), name=f"events of {registration.node_id}"
        )
        self._links[registration.node_id] = NodeLink(registration, client, reader)

    async def _leave(self, node: NodeId) -> None:
        link = self._links.pop(node, None)
        self._states.pop(node, None)
        if link is not None:
            link.reader.cancel()
            await link.client.close()
            self._membership.beat()
            await self._events.put(NodeLeft(node))

    async def _read(self, node: NodeId, client: NodeClient) -> None:
        """Reads an agent's events; a broken connection is made anew while the node is registered,
        and its snapshot says what happened in between."""
        failures = 0
        while True:
            try:
                async for event in client.events():
                    failures = 0
                    await self._take(node, event)
            except NoCapacity as error:
                log.warning("agent does not answer", node=node, error=error.message)
            delay_s = RECONNECT_DELAYS_S[min(failures, len(RECONNECT_DELAYS_S) - 1)]
            failures += 1
            await asyncio.sleep(delay_s)

    async def _take(self, node: NodeId, event: AgentEvent) -> None:
        match event:
            case NodeState():
                self._states[node] = event
                self._changed.beat()
                await self._events.put(
                    NodeChanged(node, event.memory_bytes, event.blank_workers, event.resident_bytes)
                )
            case Running():
                self._membership.beat()
                await self._events.put(Snapshot(node, frozenset(event.instances)))
            case Started():
                spans = tuple(Span(p.name, p.duration_ms, p.tier, p.bytes) for p in event.phases)
                await self._events.put(
                    InstanceReady(
                        event.function,
                        event.instance_id,
                        event.socket,
                        event.pid,
                        spans,
                        event.provisioned,
                    )
                )
            case Exited():
                await self._events.put(
                    InstanceExited(
                        event.function, event.instance_id, _cause(event), event.permanent
                    )
                )


def _is_warm(state: NodeState) -> bool:
    return state.blank_workers >= state.warm_pool_size and not state.starting_workers


def _cause(event: Exited) -> StokerError | None:
    """Why an instance is gone, with the tail of its log for whoever waits for it."""
    if event.error is None:
        return None
    kind = InstanceLost if event.error.code == InstanceLost.code else StartupFailed
    return kind(
        event.error.message,
        param=event.error.param,
        details={
            **event.error.details,
            "cause": event.error.code,
            "log_tail": event.error.details.get("log_tail") or list(event.log_tail),
        },
    )
