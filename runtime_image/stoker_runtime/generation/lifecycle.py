"""A generation's life as a table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    WAITING = "waiting"  # admitted, without a slot
    PREFILLING = "prefilling"  # its tokens are being read into a slot
    DECODING = "decoding"  # one token a step
    ENDED = "ended"  # its last frame has been made


class Event(StrEnum):
    SEATED = "seated"  # a slot is its own
    FILLED = "filled"  # the last of its tokens has been read
    ENDS = "ends"  # by a stop, a bound, a cancellation or an error


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.WAITING, Event.SEATED): State.PREFILLING,
    (State.WAITING, Event.ENDS): State.ENDED,
    (State.PREFILLING, Event.FILLED): State.DECODING,
    (State.PREFILLING, Event.ENDS): State.ENDED,
    (State.DECODING, Event.ENDS): State.ENDED,
}


def advance(state: State, event: Event) -> State:
    """The next state; an event that the table does not know is a broken invariant."""
    after = TRANSITIONS.get((state, event))
    assert after is not None, f"{event} cannot happen to a generation that is {state}"
    return after
