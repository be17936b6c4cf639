"""What the scheduler knows, as immutable values: the input of `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stoker.domain import (
    Digest,
    FunctionName,
    InstanceId,
    NodeId,
    PhaseName,
    RequestId,
    Revision,
    RevisionId,
    Tier,
)
from stoker.errors import StokerError
from stoker.lifecycle import BreakerState, InstanceState


@dataclass(frozen=True, slots=True)
class Span:
    """How long one phase of a start took, as the agent measured it."""

    name: PhaseName
    duration_ms: float
    tier: Tier | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance. Times are seconds of the monotonic clock that `now` comes from."""

    id: InstanceId
    revision: Revision
    node: NodeId
    state: InstanceState
    requested_at: float
    predicted_ms: Mapping[PhaseName, float]
    active: int = 0  # leases held
    ready_at: float | None = None
    idle_since: float | None = None  # ready and without a lease since then
    socket: Path | None = None
    pid: int | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits for a slot."""

    request_id: RequestId
    arrived_at: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Breaker:
    """Consecutive failures of a function's instances, and what follows from them."""

    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    open_until: float = 0.0
    cause: StokerError | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """One function: the revision that has its traffic, its instances and who waits for them."""

    revision: Revision
    instances: Mapping[InstanceId, Instance] = field(default_factory=dict)
    queue: tuple[Waiter, ...] = ()  # first come, first served
    breaker: Breaker = Breaker()
    deleted: bool = False

    def current(self) -> list[Instance]:
        """Instances that serve, or will serve, the revision that has the traffic."""
        alive = (InstanceState.STARTING, InstanceState.READY)
        return [
            i
            for i in self.instances.values()
            if i.state in alive and i.revision.id == self.revision.id
        ]


@dataclass(frozen=True, slots=True)
class Node:
    """One node as its agent reported it."""

    id: NodeId
    memory_bytes: int
    blank_workers: int = 0
    resident_bytes: Mapping[Digest, int] = field(default_factory=dict)


CalibrationKey = tuple[NodeId, PhaseName, RevisionId | str]


@dataclass(frozen=True, slots=True)
class Calibration:
    """Learned figures: milliseconds per (node, phase, revision or kind), bytes/s per tier."""

    phase_ms: Mapping[CalibrationKey, float] = field(default_factory=dict)
    bandwidth: Mapping[tuple[NodeId, Tier], float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """An immutable snapshot of everything that a decision may depend on."""

    pools: Mapping[FunctionName, Pool] = field(default_factory=dict)
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)

    def used_memory_bytes(self, node: NodeId) -> int:
        """Memory that the node's instances may use, by their functions' `resources.memory`."""
        return sum(
            i.revision.resources.memory_bytes
            for pool in self.pools.values()
            for i in pool.instances.values()
            if i.node == node
        )
