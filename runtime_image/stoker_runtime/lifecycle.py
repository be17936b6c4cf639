"""A worker's life as a table: blank, loading, then ready or failed; nothing leads back."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from stoker_runtime.contract import WorkerState
from stoker_runtime.errors import AlreadyLoaded


class WorkerEvent(StrEnum):
    """What can happen to a worker."""

    LOAD = "load"  # it was told to become an instance
    LOADED = "loaded"  # it can answer requests
    LOAD_FAILED = "load_failed"  # it never will


TRANSITIONS: Mapping[tuple[WorkerState, WorkerEvent], WorkerState] = MappingProxyType(
    {
        (WorkerState.BLANK, WorkerEvent.LOAD): WorkerState.LOADING,
        (WorkerState.LOADING, WorkerEvent.LOADED): WorkerState.READY,
        (WorkerState.LOADING, WorkerEvent.LOAD_FAILED): WorkerState.FAILED,
    }
)


def advance(state: WorkerState, event: WorkerEvent) -> WorkerState:
    """The state that follows.

    Raises:
        AlreadyLoaded: a load was asked of a worker that is no longer blank.
    """
    following = TRANSITIONS.get((state, event))
    if following is not None:
        return following
    assert event is WorkerEvent.LOAD, f"{event} cannot happen to a worker that is {state}"
    raise AlreadyLoaded(
        f"this worker is {state} and loads only once; start another worker for another instance"
    )
