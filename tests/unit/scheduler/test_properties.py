"""What must hold after any sequence of events: the scheduler's invariants, searched by machine."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.domain import FunctionName, InstanceId, ScalePolicy, StartupPolicy
from stoker.errors import InstanceLost
from stoker.lifecycle import BreakerState, InstanceState
from stoker.scheduler.events import (
    Action,
    DeadlinePassed,
    FunctionDeleted,
    Grant,
    InstanceSuspected,
    Reject,
    RequestCancelled,
    RevisionDeployed,
    ScaleRequested,
    Start,
)
from stoker.scheduler.observe import next_deadline
from stoker.scheduler.policy import decide
from unit.scheduler.harness import Harness, revision

NAMES = ("a", "b")
SCALE = ScalePolicy(min=0, max=3, target=2, hard_limit=3, keep_alive_s=10.0)
STARTUP = StartupPolicy(timeout_s=20.0, max_held=5)


class SchedulerMachine(RuleBasedStateMachine):
    """Random lives of two functions on one node."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness()
        self.numbers = dict.fromkeys(NAMES, 1)
        self.held: list[tuple[str, InstanceId]] = []
        self.arrived = self.answered = self.cancelled = 0

    def revision(self, name: str):  # type: ignore[no-untyped-def]
        return revision(name, self.numbers[name], scale=SCALE, startup=STARTUP)

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Grant):
                self.answered += 1
                self.held.append((action.function, action.instance_id))
            elif isinstance(action, Reject):
                self.answered += 1

    def some(self, *states: InstanceState):  # type: ignore[no-untyped-def]
        return [
            i
            for pool in self.harness.view.pools.values()
            for i in pool.instances.values()
            if i.state in states
        ]

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 7))
    def arrive(self, name: str, count: int) -> None:
        self.arrived += count
        self.take(self.harness.arrive(self.revision(name), count, timeout_s=20.0))

    @precondition(lambda self: self.some(InstanceState.STARTING))
    @rule(data=st.data())
    def come_up(self, data: st.DataObject) -> None:
        self.take(self.harness.ready(data.draw(st.sampled_from(self.some(InstanceState.STARTING)))))

    @precondition(lambda self: self.some(*InstanceState))
    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        """As an agent that was reconnected to does, and one that was told to stop meanwhile."""
        self.take(self.harness.ready(data.draw(st.sampled_from(self.some(*InstanceState)))))

    @precondition(lambda self: self.some(*InstanceState))
    @rule(data=st.data(), permanent=st.booleans())
    def die(self, data: st.DataObject, permanent: bool) -> None:
        instance = data.draw(st.sampled_from(self.some(*InstanceState)))
        stopping = instance.state is InstanceState.STOPPING
        cause = None if stopping else InstanceLost("killed")
        self.take(self.harness.exit(instance, cause, permanent=permanent and not stopping))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name, instance_id = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.take(self.harness.release(instance_id, name))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        name, instance_id = data.draw(st.sampled_from(self.held))
        self.take(self.harness.send(InstanceSuspected(FunctionName(name), instance_id)))

    @precondition(lambda self: any(p.queue for p in self.harness.view.pools.values()))
    @rule()
    def leave(self) -> None:
        pool = next(p for p in self.harness.view.pools.values() if p.queue)
        self.cancelled += 1
        self.take(
            self.harness.send(RequestCancelled(pool.revision.function, pool.queue[0].request_id))
        )

    @rule(seconds=st.floats(0.1, 400.0))
    def wait(self, seconds: float) -> None:
        self.take(self.harness.advance(seconds))

    @precondition(lambda self: self.held)
    @rule()
    def release_all(self) -> None:
        while self.held:
            name, instance_id = self.held.pop()
            self.take(self.harness.release(instance_id, name))

    @rule(
        name=st.sampled_from(NAMES),
        what=st.sampled_from(["deploy", "delete", 0, 1, 4]),
    )
    def operate(self, name: str, what: str | int) -> None:
        """What people do to a function; one rule, so that most steps are requests' lives."""
        if what == "deploy":
            self.numbers[name] += 1
            self.take(self.harness.send(RevisionDeployed(self.revision(name))))
        elif what == "delete":
            self.take(self.harness.send(FunctionDeleted(FunctionName(name))))
        else:
            self.take(self.harness.send(ScaleRequested(self.revision(name), int(what))))

    @invariant()
    def every_request_is_answered_once_or_waits(self) -> None:
        waiting = sum(len(p.queue) for p in self.harness.view.pools.values())
        assert self.arrived == self.answered + self.cancelled + waiting

    @invariant()
    def leases_never_exceed_the_hard_limit(self) -> None:
        for pool in self.harness.view.pools.values():
            for instance in pool.instances.values():
                assert 0 <= instance.active <= SCALE.hard_limit

    @invariant()
    def leases_in_the_view_are_leases_that_are_held(self) -> None:
        for pool in self.harness.view.pools.values():
            for instance in pool.instances.values():
                held = self.held.count((pool.revision.function, instance.id))
                assert instance.active == held

    @invariant()
    def nothing_ready_and_unused_lacks_a_deadline(self) -> None:
        for instance in self.some(InstanceState.READY):
            assert (instance.idle_since is None) == (instance.active > 0)

    @invariant()
    def nobody_waits_beside_a_free_slot_or_past_a_deadline(self) -> None:
        for pool in self.harness.view.pools.values():
            free = [
                i
                for i in pool.current()
                if i.state is InstanceState.READY and i.active < SCALE.hard_limit
            ]
            assert not (pool.queue and free)
            assert len(pool.queue) <= STARTUP.max_held
            assert all(w.deadline > self.harness.now - 1e-9 for w in pool.queue)

    @invariant()
    def who_waits_has_someone_to_wait_for(self) -> None:
        for pool in self.harness.view.pools.values():
            if pool.queue:
                coming = pool.current()
                leaving = self.some(InstanceState.STOPPING, InstanceState.DRAINING)
                assert coming or leaving or pool.breaker.state is not BreakerState.CLOSED

    @invariant()
    def decide_is_at_rest(self) -> None:
        """Looking again without anything having happened finds nothing to do."""
        again = decide(self.harness.view, DeadlinePassed(), self.harness.now)
        assert [a for a in again if not isinstance(a, Start)] == []
        assert again == decide(self.harness.view, DeadlinePassed(), self.harness.now)

    @invariant()
    def the_timer_never_spins(self) -> None:
        due = next_deadline(self.harness.view, self.harness.now)
        assert due is None or due > self.harness.now


SchedulerMachine.TestCase.settings = settings(
    max_examples=300, stateful_step_count=50, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
