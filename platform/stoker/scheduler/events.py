"""What can happen (events) and what can be done about it (actions)."""

from __future__ import annotations

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
)
from stoker.errors import StokerError
from stoker.scheduler.view import Span

# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestArrived:
    request_id: RequestId
    revision: Revision
    arrived_at: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """Its client left while it waited."""

    function: FunctionName
    request_id: RequestId


@dataclass(frozen=True, slots=True)
class LeaseReleased:
    function: FunctionName
    instance_id: InstanceId


@dataclass(frozen=True, slots=True)
class FirstToken:
    function: FunctionName
    instance_id: InstanceId
    prefill_ms: float


@dataclass(frozen=True, slots=True)
class InstanceReady:
    function: FunctionName
    instance_id: InstanceId
    socket: Path
    pid: int | None
    spans: tuple[Span, ...]
    provisioned: str  # how the worker came: "claim" or "spawn"


@dataclass(frozen=True, slots=True)
class InstanceExited:
    """It is gone: it was stopped, it died, or it never came up."""

    function: FunctionName
    instance_id: InstanceId
    cause: StokerError | None  # None: it was told to stop
    permanent: bool = False  # starting it again cannot help


@dataclass(frozen=True, slots=True)
class InstanceSuspected:
    """A request found its socket dead: no more leases on it, whatever its agent still believes."""

    function: FunctionName
    instance_id: InstanceId


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """A node joined, or what it reports has changed."""

    node: NodeId
    memory_bytes: int
    blank_workers: int
    resident_bytes: dict[Digest, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NodeLeft:
    node: NodeId


@dataclass(frozen=True, slots=True)
class RevisionDeployed:
    revision: Revision


@dataclass(frozen=True, slots=True)
class FunctionDeleted:
    function: FunctionName


@dataclass(frozen=True, slots=True)
class ScaleRequested:
    revision: Revision
    replicas: int


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """Some deadline that the view holds has come."""


Event = (
    RequestArrived
    | RequestCancelled
    | LeaseReleased
    | FirstToken
    | InstanceReady
    | InstanceExited
    | InstanceSuspected
    | NodeChanged
    | NodeLeft
    | RevisionDeployed
    | FunctionDeleted
    | ScaleRequested
    | DeadlinePassed
)

# --- actions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """A request gets a slot of an instance."""

    function: FunctionName
    request_id: RequestId
    instance_id: InstanceId


@dataclass(frozen=True, slots=True)
class Reject:
    function: FunctionName
    request_id: RequestId
    error: StokerError


@dataclass(frozen=True, slots=True)
class Start:
    """A new instance of a revision is brought up on a node."""

    revision: Revision
    node: NodeId
    predicted_ms: dict[PhaseName, float]


@dataclass(frozen=True, slots=True)
class Stop:
    function: FunctionName
    instance_id: InstanceId
    reason: str  # keep_alive | scaled | superseded | deleted | evicted


@dataclass(frozen=True, slots=True)
class Drain:
    """An instance gets no new leases; it is stopped when its last one ends."""

    function: FunctionName
    instance_id: InstanceId
    reason: str


Action = Grant | Reject | Start | Stop | Drain
