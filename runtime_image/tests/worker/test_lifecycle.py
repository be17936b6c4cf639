"""The table is the whole truth about a worker's states."""

from __future__ import annotations

from itertools import product

import pytest

from stoker_runtime.contract import WorkerState
from stoker_runtime.errors import AlreadyLoaded
from stoker_runtime.lifecycle import TRANSITIONS, WorkerEvent, advance


@pytest.mark.parametrize(("state", "event"), list(product(WorkerState, WorkerEvent)))
def test_each_pair_is_decided(state, event):
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
    elif event is WorkerEvent.LOAD:
        with pytest.raises(AlreadyLoaded, match=f"this worker is {state} and loads only once"):
            advance(state, event)
    else:
        with pytest.raises(AssertionError):
            advance(state, event)


def test_every_state_but_blank_is_reached():
    assert set(TRANSITIONS.values()) == set(WorkerState) - {WorkerState.BLANK}
