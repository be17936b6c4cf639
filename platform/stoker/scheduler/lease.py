"""What the gateway sees of scheduling: a lease, and how to get one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stoker.domain import (
    FunctionName,
    InstanceId,
    NodeId,
    Phase,
    RequestId,
    Revision,
    RevisionId,
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one request to one slot of one instance, until its context ends."""

    request_id: RequestId
    instance_id: InstanceId
    revision: Revision
    socket: Path  # the instance's Unix socket
    cold: bool  # the request waited for a start
    arrived_at: float  # time.monotonic() when the request arrived
    granted_at: float  # time.monotonic() when the slot was granted
    phases: tuple[Phase, ...]  # queue to init; together they span arrived_at..granted_at
    predicted_prefill_ms: float | None = None


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One instance as `stoker ps` shows it."""

    id: InstanceId
    function: FunctionName
    revision: RevisionId
    node: NodeId
    state: str  # a state of lifecycle.INSTANCE
    active: int  # leases held
    slots: int  # hard limit
    started_at: float  # Unix seconds
    idle_deadline_s: float | None  # seconds until keep-alive ends; None while it is used
    pid: int | None


@dataclass(frozen=True, slots=True)
class ScaleStatus:
    """How many instances a function has now, and how many were asked for."""

    function: FunctionName
    replicas: int  # asked for
    ready: int
    starting: int
    draining: int


class Leasing(Protocol):
    """The dispatcher as the gateway uses it. Every wait here can be cancelled by its caller."""

    def lease(
        self,
        request_id: RequestId,
        revision: Revision,
        *,
        arrived_at: float,
        timeout_s: float | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Holds a slot of an instance of `revision` while the context is open.

        `timeout_s` overrides the revision's `startup.timeout` (0: fail unless one is free now).
        Raises QueueFull, StartupTimeout, StartupFailed, CrashLoop, NoCapacity, ShuttingDown.
        """
        ...

    def prefilled(self, lease: Lease, prefill_ms: float, prompt_tokens: int) -> None:
        """Reports a first token, so that the next prediction is better."""
        ...

    def lost(self, lease: Lease) -> None:
        """Reports that the instance's socket is dead, without waiting for its agent to notice."""
        ...

    async def deployed(self, revision: Revision) -> None:
        """A new revision takes the function's traffic; instances of older ones drain."""
        ...

    async def deleted(self, function: FunctionName) -> None:
        """Stops all instances of a function and rejects what waits for it."""
        ...

    async def scale(self, revision: Revision, replicas: int) -> ScaleStatus:
        """Starts or stops instances until `replicas` are ready, or a named bound has passed."""
        ...

    def instances(self, function: FunctionName | None = None) -> tuple[InstanceStatus, ...]: ...

    def waiting(self, function: FunctionName) -> int:
        """Requests held in the function's queue."""
        ...

    def logs(self, function: FunctionName, *, follow: bool) -> AsyncGenerator[str]:
        """Lines of the function's instances, each prefixed with its instance; with `follow`,
        goes on until the caller closes it."""
        ...
