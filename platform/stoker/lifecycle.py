"""Every lifecycle of the control plane as a table `(state, event) -> state`.

The tables are the whole truth: code asks `advance` and never compares states to decide what may
follow, and `docs/lifecycles.md` is generated from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

State = TypeVar("State", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


def advance(table: Mapping[tuple[State, Event], State], state: State, event: Event) -> State:
    """Returns the state that follows. A pair that the table lacks is a broken invariant."""
    following = table.get((state, event))
    assert following is not None, f"no transition for {event!r} in state {state!r}"
    return following


class InstanceState(StrEnum):
    """An instance as the dispatcher sees it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # its leases run out; it gets no new ones
    STOPPING = "stopping"  # its agent was told to end it
    GONE = "gone"


class InstanceEvent(StrEnum):
    LOADED = "loaded"
    DRAIN = "drain"
    STOP = "stop"
    EXITED = "exited"


INSTANCE: Mapping[tuple[InstanceState, InstanceEvent], InstanceState] = {
    (InstanceState.STARTING, InstanceEvent.LOADED): InstanceState.READY,
    (InstanceState.STARTING, InstanceEvent.STOP): InstanceState.STOPPING,
    (InstanceState.STARTING, InstanceEvent.EXITED): InstanceState.GONE,
    (InstanceState.READY, InstanceEvent.DRAIN): InstanceState.DRAINING,
    (InstanceState.READY, InstanceEvent.STOP): InstanceState.STOPPING,
    (InstanceState.READY, InstanceEvent.EXITED): InstanceState.GONE,
    (InstanceState.DRAINING, InstanceEvent.STOP): InstanceState.STOPPING,
    (InstanceState.DRAINING, InstanceEvent.EXITED): InstanceState.GONE,
    # A load that was under way when the stop was sent may still report, and an agent that was
    # reconnected to says again what is ready.
    (InstanceState.READY, InstanceEvent.LOADED): InstanceState.READY,
    (InstanceState.DRAINING, InstanceEvent.LOADED): InstanceState.DRAINING,
    (InstanceState.STOPPING, InstanceEvent.LOADED): InstanceState.STOPPING,
    (InstanceState.STOPPING, InstanceEvent.EXITED): InstanceState.GONE,
}


class WorkerState(StrEnum):
    """A worker process as the agent sees it, from the moment an instance claims it."""

    BLANK = "blank"  # in the warm pool, or on its way there
    LOADING = "loading"  # claimed by an instance
    SERVING = "serving"
    ENDING = "ending"  # told to stop
    DEAD = "dead"


class WorkerEvent(StrEnum):
    CLAIMED = "claimed"
    LOADED = "loaded"
    TERMINATED = "terminated"
    EXITED = "exited"


WORKER: Mapping[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (WorkerState.BLANK, WorkerEvent.CLAIMED): WorkerState.LOADING,
    (WorkerState.LOADING, WorkerEvent.LOADED): WorkerState.SERVING,
    (WorkerState.LOADING, WorkerEvent.TERMINATED): WorkerState.ENDING,
    (WorkerState.LOADING, WorkerEvent.EXITED): WorkerState.DEAD,
    (WorkerState.SERVING, WorkerEvent.TERMINATED): WorkerState.ENDING,
    (WorkerState.SERVING, WorkerEvent.EXITED): WorkerState.DEAD,
    (WorkerState.ENDING, WorkerEvent.EXITED): WorkerState.DEAD,
}


class CopyState(StrEnum):
    """A node's copy of an artifact, as its cache sees it."""

    ABSENT = "absent"  # nothing is there, or a part of it that nobody brings the rest of
    ARRIVING = "arriving"
    WHOLE = "whole"  # every byte was compared on this node


class CopyEvent(StrEnum):
    WANTED = "wanted"
    ARRIVED = "arrived"
    ABANDONED = "abandoned"  # its fetch failed, or nobody waits for it any more
    CHANGED = "changed"  # its files are not as they were when they were compared
    EVICTED = "evicted"


COPY: Mapping[tuple[CopyState, CopyEvent], CopyState] = {
    (CopyState.ABSENT, CopyEvent.WANTED): CopyState.ARRIVING,
    (CopyState.ABSENT, CopyEvent.EVICTED): CopyState.ABSENT,
    (CopyState.ARRIVING, CopyEvent.ARRIVED): CopyState.WHOLE,
    (CopyState.ARRIVING, CopyEvent.ABANDONED): CopyState.ABSENT,
    (CopyState.WHOLE, CopyEvent.CHANGED): CopyState.ABSENT,
    (CopyState.WHOLE, CopyEvent.EVICTED): CopyState.ABSENT,
}


class BreakerState(StrEnum):
    """Whether a function may be started: closed lets starts through, open holds them back."""

    CLOSED = "closed"
    OPEN = "open"
    PROBING = "probing"  # one start is let through


class BreakerEvent(StrEnum):
    TRIPPED = "tripped"  # one failure too many in a row
    COOLED = "cooled"  # `open_until` has passed
    SUCCEEDED = "succeeded"


BREAKER: Mapping[tuple[BreakerState, BreakerEvent], BreakerState] = {
    (BreakerState.CLOSED, BreakerEvent.TRIPPED): BreakerState.OPEN,
    (BreakerState.CLOSED, BreakerEvent.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.OPEN, BreakerEvent.COOLED): BreakerState.PROBING,
    (BreakerState.OPEN, BreakerEvent.TRIPPED): BreakerState.OPEN,
    (BreakerState.OPEN, BreakerEvent.SUCCEEDED): BreakerState.CLOSED,
    (BreakerState.PROBING, BreakerEvent.TRIPPED): BreakerState.OPEN,
    (BreakerState.PROBING, BreakerEvent.SUCCEEDED): BreakerState.CLOSED,
}
