"""How the time of a start is told apart when its load ran while its bytes were arriving."""

from __future__ import annotations

import pytest

from stoker.domain import PhaseName, Tier
from stoker.node.held import Arrived
from stoker.node.loading import overlapped
from stoker.node.wire import MeasuredPhase

FETCH = MeasuredPhase(name=PhaseName.FETCH, duration_ms=20.0)
LOAD = MeasuredPhase(name=PhaseName.LOAD, duration_ms=100.0, tier=Tier.REMOTE, bytes=1000)
INIT = MeasuredPhase(name=PhaseName.INIT, duration_ms=30.0)


@pytest.mark.parametrize(
    ("arrived_at", "expected_ms"),
    [
        (9.9, (20.0, 100.0, 30.0)),  # before the load began
        (10.06, (80.0, 40.0, 30.0)),
        (10.11, (130.0, 0.0, 20.0)),
        (10.2, (220.0, 0.0, 0.0)),  # after the engine was ready
    ],
)
def test_until_the_bytes_have_come_the_time_is_the_fetches(
    arrived_at: float, expected_ms: tuple[float, ...]
) -> None:
    arrived = Arrived(size_bytes=1000, duration_s=0.01, at=arrived_at)
    fetch, (load, init) = overlapped(FETCH, [LOAD, INIT], arrived, readable_at=10.0)
    assert (fetch.duration_ms, load.duration_ms, init.duration_ms) == pytest.approx(expected_ms)
    assert (fetch.tier, fetch.bytes) == (Tier.REMOTE, 1000)
    # A load that had nothing to do but wait says nothing of any tier's speed.
    assert (load.tier, load.bytes) == ((Tier.REMOTE, 1000) if arrived_at < 10 else (None, 0))


def test_a_fetch_that_ran_before_its_phase_began_says_nothing_of_its_rate() -> None:
    arrived = Arrived(size_bytes=1000, duration_s=5.0, at=10.0)
    fetch, _ = overlapped(FETCH, [LOAD, INIT], arrived, readable_at=10.0)
    assert (fetch.tier, fetch.bytes, fetch.duration_ms) == (Tier.REMOTE, 0, 20.0)


def test_what_was_on_the_node_came_from_nowhere() -> None:
    arrived = Arrived(size_bytes=0, duration_s=0.02, at=10.0)
    fetch, _ = overlapped(FETCH, [LOAD, INIT], arrived, readable_at=10.0)
    assert (fetch.tier, fetch.bytes) == (None, 0)
