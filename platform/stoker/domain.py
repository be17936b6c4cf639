"""The nouns of the platform as immutable values. Nothing here does I/O or reads a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

from stoker_runtime.contract import EngineName, Tier

FunctionName = NewType("FunctionName", str)
RevisionId = NewType("RevisionId", str)  # "<function>-00001": unique, and says whose it is
InstanceId = NewType("InstanceId", str)
NodeId = NewType("NodeId", str)
RequestId = NewType("RequestId", str)
Digest = NewType("Digest", str)  # "blake3:<64 hex digits>" of a directory's content

__all__ = [
    "Artifact",
    "CachePolicy",
    "Digest",
    "EngineName",
    "Function",
    "FunctionName",
    "InstanceId",
    "NodeId",
    "Phase",
    "PhaseName",
    "RequestId",
    "Resources",
    "Revision",
    "RevisionId",
    "RuntimeSpec",
    "ScalePolicy",
    "StartupPolicy",
    "Tier",
    "Timeline",
]


@dataclass(frozen=True, slots=True)
class Artifact:
    """An immutable directory in the checkpoint store: a checkpoint, or a handler's sources."""

    digest: Digest
    size_bytes: int
    name: str | None = None  # the name it was pushed under; None for a function's sources
    source_digest: Digest | None = None  # of the files as they were uploaded, before the layout
    created_at: float = 0.0  # Unix seconds


@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    engine: EngineName = EngineName.AUTO
    handler: str | None = None  # file name within the function's sources
    args: dict[str, Any] = field(default_factory=dict)  # contract.EngineArgs
    options: dict[str, Any] = field(default_factory=dict)  # for the handler's setup()


@dataclass(frozen=True, slots=True)
class Resources:
    cpu: float = 2.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """How many instances run: `target` requests an instance is aimed at, `hard_limit` never
    exceeded; an instance that nobody used for `keep_alive_s` stops unless `min` needs it."""

    min: int = 0
    max: int = 1
    target: int = 8
    hard_limit: int = 16
    keep_alive_s: float = 300.0


@dataclass(frozen=True, slots=True)
class StartupPolicy:
    timeout_s: float = 600.0  # a held request is answered with 504 after this
    max_held: int = 200  # requests that may wait at once; one more gets 429


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What nodes keep of the checkpoint while nothing runs."""

    pin: Tier | None = None  # on `min_copies` nodes it is in this tier and never given up
    min_copies: int = 1  # more than one are pinned on the SSD at least
    prefetch: tuple[Tier, ...] = ()  # where it is brought when it is deployed, on as many nodes

    @property
    def pinned_in(self) -> Tier | None:
        """The tier from which copies are not given up."""
        return self.pin or (Tier.SSD if self.min_copies > 1 else None)


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable version of a function."""

    id: RevisionId
    function: FunctionName
    number: int
    created_at: float  # Unix seconds
    content_digest: str  # of all below: a deploy of the same content is the same revision
    checkpoint: Artifact | None
    source: Artifact | None
    runtime: RuntimeSpec
    resources: Resources
    scale: ScalePolicy
    startup: StartupPolicy
    env: dict[str, str]
    cache: CachePolicy = CachePolicy()


@dataclass(frozen=True, slots=True)
class Function:
    """A name that a user deployed; all traffic goes to its latest revision."""

    name: FunctionName
    created_at: float
    latest: RevisionId
    revisions: tuple[RevisionId, ...]  # oldest first


class PhaseName(StrEnum):
    """The startup phases, in order. Every request carries them, warm or cold."""

    QUEUE = "queue"
    SCHEDULE = "schedule"
    PROVISION = "provision"
    FETCH = "fetch"
    LOAD = "load"
    INIT = "init"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class Phase:
    name: PhaseName
    start_ms: float  # since the request arrived
    duration_ms: float
    predicted_ms: float | None = None  # None: nothing to predict from yet
    tier: Tier | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where a request's time went until its first token; `phases` are contiguous."""

    request_id: RequestId
    function: FunctionName
    revision: RevisionId
    cold: bool
    total_ms: float
    phases: tuple[Phase, ...]
