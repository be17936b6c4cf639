"""`decide` as a table of situations: what happened, and what must follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.domain import FunctionName, RequestId, ScalePolicy, StartupPolicy
from stoker.errors import InstanceLost, StartupFailed
from stoker.lifecycle import BreakerState, InstanceState
from stoker.scheduler import scaling
from stoker.scheduler.events import (
    Drain,
    FunctionDeleted,
    Grant,
    InstanceReady,
    InstanceSuspected,
    NodeChanged,
    Reject,
    RequestCancelled,
    RevisionDeployed,
    ScaleRequested,
    Start,
    Stop,
)
from unit.scheduler.harness import NODE, Harness, errors, of, revision


def test_first_request_starts_one_instance_and_waits_for_it() -> None:
    harness = Harness()
    assert [type(a) for a in harness.arrive(revision())] == [Start]
    granted = harness.all_ready()
    assert [type(a) for a in granted] == [Grant]
    assert harness.pool().queue == ()


def test_a_herd_starts_exactly_what_the_target_wants() -> None:
    harness = Harness()
    held = StartupPolicy(max_held=200)
    wide = revision(scale=ScalePolicy(max=4, target=50, hard_limit=50), startup=held)
    herd = harness.arrive(wide, 200)
    assert len(of(Start, herd)) == 4
    small = Harness()
    wider = revision(scale=ScalePolicy(max=10, target=50, hard_limit=50), startup=held)
    herd = small.arrive(wider, 101)
    assert len(of(Start, herd)) == 3, "ceil(101 / 50), counted while the first one still starts"


def test_no_instance_ever_gets_more_than_its_hard_limit() -> None:
    harness = Harness()
    harness.arrive(revision(scale=ScalePolicy(max=1, target=1, hard_limit=3)), 10)
    granted = harness.all_ready()
    assert len(of(Grant, granted)) == 3
    assert len(harness.pool().queue) == 7


def test_oldest_request_is_granted_first() -> None:
    harness = Harness()
    harness.arrive(revision(scale=ScalePolicy(max=1, target=1, hard_limit=1)), 3)
    first, second, _ = (w.request_id for w in harness.pool().queue)
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    assert grant.request_id == first
    (following,) = of(Grant, harness.release(grant.instance_id))
    assert isinstance(following, Grant)
    assert following.request_id == second


def test_requests_spread_over_the_instances_with_fewest_leases() -> None:
    harness = Harness()
    harness.arrive(revision(), 4)
    harness.all_ready()
    first, second = (i.id for i in harness.instances(InstanceState.READY))
    assert harness.pool().instances[first].active == 4, "it was ready when nobody else was"
    assert harness.pool().instances[second].active == 0
    harness.arrive(revision(), 2)
    assert harness.pool().instances[second].active == 2


def test_one_request_too_many_is_turned_away_with_the_time_to_come_back() -> None:
    harness = Harness()
    held = revision(startup=StartupPolicy(timeout_s=30.0, max_held=3))
    assert errors(harness.arrive(held, 3)) == []
    (reject,) = of(Reject, harness.arrive(held))
    assert isinstance(reject, Reject)
    assert reject.error.code == "queue_full"
    assert reject.error.retry_after_s is not None
    assert len(harness.pool().queue) == 3


def test_a_request_that_waits_past_its_timeout_is_answered_then() -> None:
    harness = Harness()
    harness.arrive(revision(), timeout_s=5.0)
    assert errors(harness.advance(4.9)) == []
    assert errors(harness.advance(0.2)) == ["startup_timeout"]
    assert len(harness.instances(InstanceState.STARTING)) == 1, "the start goes on for others"


def test_a_timeout_of_zero_takes_a_free_slot_or_fails_at_once() -> None:
    harness = Harness()
    assert errors(harness.arrive(revision(), timeout_s=0.0)) == ["startup_timeout"]
    harness.arrive(revision())
    harness.all_ready()
    assert [type(a) for a in harness.arrive(revision(), timeout_s=0.0)] == [Grant]


def test_a_client_that_leaves_frees_its_place_and_not_the_start() -> None:
    harness = Harness()
    harness.arrive(revision())
    leaver = harness.pool().queue[0].request_id
    assert harness.send(RequestCancelled(FunctionName("chat"), leaver)) == []
    assert harness.pool().queue == ()
    harness.all_ready()
    (idle,) = harness.instances(InstanceState.READY)
    assert idle.idle_since == harness.now, "it belongs to a keep-alive deadline"


def test_keep_alive_stops_an_idle_instance_and_not_before() -> None:
    harness = Harness()
    harness.arrive(revision())
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    assert harness.advance(1000.0) == [], "it is in use"
    harness.release(grant.instance_id)
    assert harness.advance(59.0) == []
    (stop,) = harness.advance(2.0)
    assert isinstance(stop, Stop)
    assert stop.reason == "keep_alive"


def test_use_begins_keep_alive_anew() -> None:
    harness = Harness()
    harness.arrive(revision())
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    harness.release(grant.instance_id)
    harness.advance(50.0)
    harness.arrive(revision())
    harness.release(grant.instance_id)
    assert harness.advance(50.0) == []


def test_min_instances_stay() -> None:
    harness = Harness()
    harness.send(RevisionDeployed(revision(scale=ScalePolicy(min=1, max=2, keep_alive_s=1.0))))
    harness.all_ready()
    assert harness.advance(100.0) == []
    assert len(harness.instances(InstanceState.READY)) == 1


def test_a_refused_start_answers_all_who_wait_with_the_reason() -> None:
    harness = Harness()
    harness.arrive(revision(), 2)
    cause = StartupFailed("setup raised", details={"log_tail": ["boom"]})
    actions = harness.exit(harness.instances(InstanceState.STARTING)[0], cause, permanent=True)
    rejects = [a for a in actions if isinstance(a, Reject)]
    assert [r.error.code for r in rejects] == ["startup_failed"] * 2
    assert rejects[0].error.details["log_tail"] == ["boom"]
    assert of(Start, actions) == []


def test_a_start_that_dies_is_made_again_until_the_breaker_opens() -> None:
    harness = Harness()
    harness.arrive(revision())
    for _ in range(scaling.BREAKER_THRESHOLD - 1):
        (starting,) = harness.instances(InstanceState.STARTING)
        assert [type(a) for a in harness.exit(starting, StartupFailed("killed"))] == [Start]
    (starting,) = harness.instances(InstanceState.STARTING)
    (reject,) = harness.exit(starting, StartupFailed("killed"))
    assert isinstance(reject, Reject)
    assert reject.error.code == "crash_loop"
    assert reject.error.retry_after_s == pytest.approx(scaling.BREAKER_BASE_S)


def crash_looping() -> Harness:
    harness = Harness()
    for _ in range(scaling.BREAKER_THRESHOLD):
        harness.arrive(revision())
        (starting,) = harness.instances(InstanceState.STARTING)
        harness.exit(starting, StartupFailed("setup raised"), permanent=True)
    assert harness.pool().breaker.state is BreakerState.OPEN
    return harness


def test_an_open_breaker_turns_requests_away_without_a_start() -> None:
    actions = crash_looping().arrive(revision())
    assert errors(actions) == ["crash_loop"]
    assert of(Start, actions) == []


def test_a_cooled_breaker_lets_one_start_probe() -> None:
    harness = crash_looping()
    harness.advance(scaling.BREAKER_BASE_S)
    assert harness.pool().breaker.state is BreakerState.PROBING
    actions = harness.arrive(revision(), 20)
    assert len(of(Start, actions)) == 1
    granted = harness.all_ready()
    first = of(Grant, granted)[0]
    assert isinstance(first, Grant)
    harness.release(first.instance_id)
    assert harness.pool().breaker.state is BreakerState.CLOSED


def test_a_failed_probe_opens_the_breaker_for_longer() -> None:
    harness = crash_looping()
    harness.advance(scaling.BREAKER_BASE_S)
    harness.arrive(revision())
    (starting,) = harness.instances(InstanceState.STARTING)
    harness.exit(starting, StartupFailed("again"), permanent=True)
    breaker = harness.pool().breaker
    assert breaker.open_until - harness.now == pytest.approx(2 * scaling.BREAKER_BASE_S)


def test_a_new_revision_closes_the_breaker() -> None:
    harness = crash_looping()
    harness.send(RevisionDeployed(revision(number=2)))
    assert [type(a) for a in harness.arrive(revision(number=2))] == [Start]


def test_a_death_in_service_starts_anew_for_the_next_request() -> None:
    harness = Harness()
    harness.arrive(revision())
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    instance = harness.pool().instances[grant.instance_id]
    assert harness.exit(instance, InstanceLost("killed")) == []
    harness.release(grant.instance_id)  # its lease ends after it: no harm
    assert [type(a) for a in harness.arrive(revision())] == [Start]


def test_a_suspect_gets_no_more_leases() -> None:
    harness = Harness()
    one = revision(scale=ScalePolicy(max=2, target=8, hard_limit=8))
    harness.arrive(one)
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    harness.send(InstanceSuspected(FunctionName("chat"), grant.instance_id))
    assert [type(a) for a in harness.arrive(one)] == [Start]
    assert Stop(FunctionName("chat"), grant.instance_id, "scaled") in harness.release(
        grant.instance_id
    )


def test_a_new_revision_drains_the_old_one() -> None:
    harness = Harness()
    harness.arrive(revision())
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    (drain,) = harness.send(RevisionDeployed(revision(number=2)))
    assert isinstance(drain, Drain)
    assert [type(a) for a in harness.arrive(revision(number=2))] == [Start]
    (stop,) = of(Stop, harness.release(grant.instance_id))
    assert isinstance(stop, Stop)
    assert stop.reason == "superseded"


def test_scale_to_zero_spares_what_is_in_use_until_it_is_done() -> None:
    harness = Harness()
    harness.arrive(revision())
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    (drain,) = harness.send(ScaleRequested(revision(), 0))
    assert isinstance(drain, Drain)
    assert [type(a) for a in harness.release(grant.instance_id)] == [Stop]


def test_scale_to_zero_answers_whom_a_broken_function_leaves_waiting() -> None:
    """The last ready instance was worth waiting for; nothing follows it while the breaker is
    open."""
    harness = Harness()
    harness.arrive(revision(scale=ScalePolicy(max=4, target=1, hard_limit=1)), 4)
    survivor, *others = harness.instances(InstanceState.STARTING)
    harness.ready(survivor)
    for instance in others:
        harness.exit(instance, StartupFailed("killed"))
    assert harness.pool().breaker.state is BreakerState.OPEN
    assert len(harness.pool().queue) == 3
    actions = harness.send(ScaleRequested(harness.pool().revision, 0))
    assert errors(actions) == ["crash_loop"] * 3
    assert [drain.instance_id for drain in of(Drain, actions)] == [survivor.id]
    assert harness.pool().queue == ()


def test_scale_up_starts_what_is_missing() -> None:
    harness = Harness()
    assert len(of(Start, harness.send(ScaleRequested(revision(), 3)))) == 3
    harness.all_ready()
    assert [type(a) for a in harness.send(ScaleRequested(revision(), 1))] == [Stop, Stop]


def test_scale_counts_as_use_of_what_is_idle() -> None:
    """Found by the search: an overdue instance that demand kept was stopped by the scale-up."""
    harness = Harness()
    harness.arrive(revision(), 3)
    harness.all_ready()
    harness.advance(100.0)
    harness.send(ScaleRequested(revision(), 4))
    harness.all_ready()
    assert harness.advance(59.0) == []
    assert len(harness.instances(InstanceState.READY)) == 4


def test_delete_answers_waiters_and_forgets_the_function_when_all_is_gone() -> None:
    harness = Harness()
    harness.arrive(revision())
    actions = harness.send(FunctionDeleted(FunctionName("chat")))
    assert errors(actions) == ["function_not_found"]
    (stopping,) = harness.instances(InstanceState.STOPPING)
    harness.exit(stopping)
    assert harness.view.pools == {}


def test_room_is_made_by_evicting_the_longest_idle_instance_of_another_function() -> None:
    harness = Harness()
    harness.send(NodeChanged(NODE, memory_bytes=2 << 30, blank_workers=0))
    for name in ("old", "young"):
        harness.arrive(revision(name))
        (grant,) = harness.all_ready(name)
        assert isinstance(grant, Grant)
        harness.advance(1.0)
        harness.release(grant.instance_id, name)
    (stop,) = harness.arrive(revision("new"))
    assert isinstance(stop, Stop)
    assert (stop.function, stop.reason) == ("old", "evicted")
    assert harness.arrive(revision("new")) == [], "the room that is on its way is enough"
    (stopping,) = harness.instances(InstanceState.STOPPING, "old")
    assert [type(a) for a in harness.exit(stopping)] == [Start]


def test_a_start_is_predicted_from_the_starts_before_it() -> None:
    harness = Harness()
    (start,) = harness.arrive(revision())
    assert isinstance(start, Start)
    assert start.predicted_ms == {}
    (grant,) = harness.all_ready()
    assert isinstance(grant, Grant)
    harness.release(grant.instance_id)
    (stopping,) = harness.advance(61.0)
    assert isinstance(stopping, Stop)
    harness.exit(harness.instances(InstanceState.STOPPING)[0])
    (start,) = harness.arrive(revision())
    assert isinstance(start, Start)
    assert {k.value: v for k, v in start.predicted_ms.items()} == {"provision": 5.0, "load": 50.0}


def test_a_late_report_of_an_instance_that_was_stopped_changes_nothing() -> None:
    harness = Harness()
    harness.arrive(revision())
    harness.send(RequestCancelled(FunctionName("chat"), harness.pool().queue[0].request_id))
    harness.send(ScaleRequested(revision(), 0))
    (stopping,) = harness.instances(InstanceState.STOPPING)
    late = InstanceReady(FunctionName("chat"), stopping.id, Path("/s"), 1, (), "claim")
    assert harness.send(late) == []
    assert harness.instances(InstanceState.READY) == []
    assert harness.send(RequestCancelled(FunctionName("chat"), RequestId("nobody"))) == []
