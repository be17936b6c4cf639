"""What a control plane and an agent say to each other: HTTP/1.1 on the agent's socket.

POST   /v1/instances            StartInstance -> 202; the outcome comes as an event
DELETE /v1/instances/{id}       ?grace_s=     -> 202; stops it, after its requests ended
GET    /v1/instances/{id}/logs  ?follow=0|1   -> text lines
GET    /v1/cache                -> CacheState
PUT    /v1/cache/kept           KeepList -> 202; all that is to be kept, until the next one
POST   /v1/cache/{digest}/prefetch -> 202; the copy is brought beside other work
POST   /v1/cache/{digest}/evict    -> 204; 409 while an instance needs it
POST   /v1/cache/{digest}/verify   -> stream of VerifyEvent
GET    /v1/events               -> stream of AgentEvent, a NodeState and all instances first
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from stoker.domain import Digest, FunctionName, InstanceId, NodeId, PhaseName, RevisionId, Tier
from stoker.lifecycle import CopyState
from stoker_runtime.contract import EngineName, WorkerError


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StartInstance(Message):
    """Everything an agent needs to bring an instance up."""

    instance_id: InstanceId
    function: FunctionName
    revision: RevisionId
    checkpoint: Digest | None = None
    source: Digest | None = None
    engine: EngineName = EngineName.AUTO
    handler: str | None = None
    args: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    threads: int | None = None


class Expected(Message):
    """A checkpoint that may be started on this node soon."""

    checkpoint: Digest


class CopyInfo(Message):
    """One artifact on a node: what it takes of each tier, and what keeps it there."""

    digest: Digest
    state: CopyState
    ssd_bytes: int
    dram_bytes: int = 0  # that the page cache holds now
    holders: int = 0  # instances, starts and prefetches that need it
    pinned: bool = False  # never given up
    locked_bytes: int = 0  # of those in DRAM, that stay there whatever else wants the room
    why: tuple[str, ...] = ()  # it is kept; nothing: until something is worth more
    frequency: float = 0.0  # of its uses, faded since the last one
    value: float = 0.0  # seconds of bringing it again that each of its GB spares, times frequency
    used_at: float | None = None  # Unix seconds


class Keep(Message):
    """What is to be kept of one checkpoint on a node."""

    digest: Digest
    bring: Tier  # to where it is brought, once it is asked for: the SSD, or DRAM as well
    pin: Tier | None  # and from where it never goes
    why: tuple[str, ...]


class KeepList(Message):
    keep: tuple[Keep, ...] = ()


class Evictions(Message):
    tier: Tier
    reason: str
    count: int


class CacheCounters(Message):
    """What has happened in a node's tiers since its agent started."""

    hits: dict[Tier, int] = Field(default_factory=dict)  # starts that found their checkpoint there
    misses: dict[Tier, int] = Field(default_factory=dict)
    fetched_bytes: dict[str, int] = Field(default_factory=dict)  # by source
    evictions: tuple[Evictions, ...] = ()


class CacheState(Message):
    """A node's copies. The budget is None where the disk alone is the bound, and that of DRAM 0
    where nothing is locked there."""

    copies: tuple[CopyInfo, ...] = ()
    budget_bytes: int | None = None
    dram_budget_bytes: int = 0
    counters: CacheCounters = CacheCounters()


class Verifying(Message):
    """How far the reading of a copy is."""

    kind: Literal["verifying"] = "verifying"
    bytes_done: int
    bytes_total: int


class Verified(Message):
    """Every byte is what it was."""

    kind: Literal["verified"] = "verified"


class Refused(Message):
    """It is not, or could not be read."""

    kind: Literal["refused"] = "refused"
    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


VerifyEvent = Annotated[Verifying | Verified | Refused, Field(discriminator="kind")]
VERIFY_EVENT: TypeAdapter[VerifyEvent] = TypeAdapter(VerifyEvent)


class MeasuredPhase(Message):
    name: PhaseName
    duration_ms: float
    tier: Tier | None = None
    bytes: int = 0


class NodeState(Message):
    """What a node has; sent at once and whenever it changes."""

    kind: Literal["node"] = "node"
    node_id: NodeId
    memory_bytes: int
    blank_workers: int
    starting_workers: int
    warm_pool_size: int
    resident_bytes: dict[Digest, int] = Field(default_factory=dict)


class Started(Message):
    """An instance is ready at `socket`."""

    kind: Literal["started"] = "started"
    instance_id: InstanceId
    function: FunctionName
    socket: Path
    pid: int
    provisioned: Literal["claim", "spawn"]
    phases: tuple[MeasuredPhase, ...]
    facts: dict[str, Any] = Field(default_factory=dict)


class Exited(Message):
    """An instance is gone. `error` is None when it was told to stop; `permanent` says that its
    start was refused by its own content, so that another start would be too."""

    kind: Literal["exited"] = "exited"
    instance_id: InstanceId
    function: FunctionName
    error: WorkerError | None = None
    permanent: bool = False
    log_tail: tuple[str, ...] = ()


class Running(Message):
    """Ends the opening snapshot: instances that are not listed here do not exist."""

    kind: Literal["running"] = "running"
    instances: tuple[InstanceId, ...]


AgentEvent = Annotated[NodeState | Started | Exited | Running, Field(discriminator="kind")]
AGENT_EVENT: TypeAdapter[AgentEvent] = TypeAdapter(AgentEvent)
