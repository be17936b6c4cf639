"""`decide`: what to do about an event, as a pure function of the view, the event and the time.

It reads like the list of what a function needs, most urgent first: give free slots to those who
wait, answer those who waited too long, bring the number of instances to what is wanted, let go of
what nobody uses. The simulator and the live dispatcher call this one function.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from functools import cached_property

from stoker.domain import InstanceId, NodeId
from stoker.errors import CrashLoop, FunctionNotFound, QueueFull, StartupFailed, StartupTimeout
from stoker.lifecycle import BreakerState, InstanceState
from stoker.scheduler import cost, scaling
from stoker.scheduler.events import (
    Action,
    Drain,
    Event,
    Grant,
    InstanceExited,
    Reject,
    RequestArrived,
    ScaleRequested,
    Start,
    Stop,
)
from stoker.scheduler.view import Instance, Pool, View, Waiter


def decide(view: View, event: Event, now: float) -> list[Action]:
    """Returns the actions that `event`, already observed in `view`, calls for, in order.

    Every pool is looked at, because room that one function frees may be what another waits for;
    a pool that needs nothing costs one pass over its instances.
    """
    actions: list[Action] = []
    room = _Room(view)
    for pool in view.pools.values():
        actions.extend(_decide_pool(view, pool, event, now, room))
    return actions


def _decide_pool(view: View, pool: Pool, event: Event, now: float, room: _Room) -> Iterator[Action]:
    if pool.deleted:
        yield from _wind_down(pool)
        return
    current = pool.current()
    grants, waiting = _grant(pool, current)
    yield from grants
    in_use = sum(i.active for i in current) + len(grants)
    busy = {grant.instance_id for grant in grants}
    if isinstance(event, ScaleRequested) and event.revision.function == pool.revision.function:
        scaled = list(_scale_to(view, pool, event.replicas, busy, room))
        leaving = {action.instance_id for action in scaled if isinstance(action, Stop | Drain)}
        rejects, _ = _turn_away(pool, waiting, event, now, leaving)
        yield from (*rejects, *_retire_superseded(pool), *scaled)
        return
    rejects, waiting = _turn_away(pool, waiting, event, now)
    yield from rejects
    yield from _retire_superseded(pool)
    wanted = scaling.wanted_instances(pool.revision.scale, in_use + len(waiting))
    yield from _start(view, pool, wanted - len(current), now, room, urgent=bool(waiting))
    yield from _stop_unused(pool, len(current) - wanted, now, busy)


def _grant(pool: Pool, current: list[Instance]) -> tuple[list[Grant], list[Waiter]]:
    """Oldest request first, to the instance with the fewest leases: a slot is always better
    than a start, up to the hard limit."""
    free = {
        i.id: i.active
        for i in current
        if i.state is InstanceState.READY and i.active < pool.revision.scale.hard_limit
    }
    grants: list[Grant] = []
    for position, waiter in enumerate(pool.queue):
        if not free:
            return grants, list(pool.queue[position:])
        chosen = min(free, key=lambda instance: (free[instance], instance))
        free[chosen] += 1
        if free[chosen] >= pool.revision.scale.hard_limit:
            del free[chosen]
        grants.append(Grant(pool.revision.function, waiter.request_id, chosen))
    return grants, []


def _turn_away(
    pool: Pool,
    waiting: list[Waiter],
    event: Event,
    now: float,
    leaving: Set[InstanceId] = frozenset(),
) -> tuple[list[Reject], list[Waiter]]:
    """Answers those who cannot be served: too late, too many, or by a function that is broken.
    `leaving` are the instances that this decision lets go of."""
    if not waiting:
        return [], []
    function = pool.revision.function
    rejects: list[Reject] = []
    staying: list[Waiter] = []
    broken = _why_broken(pool, event, now, leaving)
    for waiter in waiting:
        if broken is not None:
            rejects.append(Reject(function, waiter.request_id, broken))
        elif waiter.deadline <= now:
            rejects.append(Reject(function, waiter.request_id, _too_late(pool, waiter, now)))
        else:
            staying.append(waiter)
    newest = isinstance(event, RequestArrived) and event.revision.function == function
    if newest and len(staying) > pool.revision.startup.max_held:
        turned_away = staying.pop()
        rejects.append(Reject(function, turned_away.request_id, _too_many(pool)))
    return rejects, staying


def _why_broken(
    pool: Pool, event: Event, now: float, leaving: Set[InstanceId]
) -> StartupFailed | CrashLoop | None:
    """Why nobody needs to wait for this function: its breaker is open, or its start just failed
    in a way that another start would repeat. While any instance stays ready, waiting is worth
    it."""
    if any(i.state is InstanceState.READY and i.id not in leaving for i in pool.current()):
        return None
    breaker, function = pool.breaker, pool.revision.function
    cause = breaker.cause
    details = dict(cause.details) if cause else {}
    why = cause.message if cause else "its instances die"
    if breaker.state is BreakerState.OPEN and now < breaker.open_until:
        wait_s = breaker.open_until - now
        return CrashLoop(
            f"function {function!r} failed {breaker.failures} times in a row and is not started "
            f"again for {wait_s:.0f} s: {why}",
            retry_after_s=wait_s,
            details=details | {"failures": breaker.failures, "retry_in_s": round(wait_s, 1)},
        )
    if isinstance(event, InstanceExited) and event.function == function and event.permanent:
        return StartupFailed(
            f"function {function!r} could not start: {why}",
            retry_after_s=scaling.RETRY_AFTER_FAILURE_S,
            details=details | {"failures": breaker.failures},
        )
    return None


def _too_late(pool: Pool, waiter: Waiter, now: float) -> StartupTimeout:
    waited_s = now - waiter.arrived_at
    return StartupTimeout(
        f"no instance of {pool.revision.function!r} became free within {waited_s:.1f} s; "
        "raise startup.timeout or prewarm the function",
        retry_after_s=scaling.eta_s(pool, now),
        details={"waited_s": round(waited_s, 3)},
    )


def _too_many(pool: Pool) -> QueueFull:
    return QueueFull(
        f"function {pool.revision.function!r} already holds {pool.revision.startup.max_held} "
        "requests (startup.max_held)",
        retry_after_s=scaling.eta_s(pool, None),
        details={"max_held": pool.revision.startup.max_held},
    )


def _start(
    view: View, pool: Pool, missing: int, now: float, room: _Room, *, urgent: bool
) -> Iterator[Action]:
    """Starts what is missing where it is expected to be ready first, and makes room if it must."""
    if pool.breaker.state is not BreakerState.CLOSED:
        starting = any(i.state is InstanceState.STARTING for i in pool.current())
        cooled = now >= pool.breaker.open_until
        missing = min(missing, 1) if cooled and not starting else 0
    for _ in range(missing):
        memory_bytes = pool.revision.resources.memory_bytes
        nodes = sorted(
            (n for n in view.nodes.values() if room.fits(n.id, memory_bytes)),
            key=lambda n: (cost.expected_ms(view.calibration, n, pool.revision), n.id),
        )
        if not nodes:
            if urgent:
                yield from room.make(view, pool, memory_bytes)
            return
        room.take(nodes[0].id, memory_bytes)
        yield Start(
            pool.revision,
            nodes[0].id,
            cost.predict(view.calibration, nodes[0], pool.revision),
        )


def _stop_unused(pool: Pool, surplus: int, now: float, busy: Set[InstanceId]) -> Iterator[Action]:
    """Lets go of what nobody used for `keep_alive`, longest idle first."""
    if surplus <= 0:
        return
    for instance in _idle(pool, busy)[:surplus]:
        assert instance.idle_since is not None
        if now >= instance.idle_since + pool.revision.scale.keep_alive_s:
            yield Stop(pool.revision.function, instance.id, "keep_alive")


def _scale_to(
    view: View, pool: Pool, replicas: int, busy: Set[InstanceId], room: _Room
) -> Iterator[Action]:
    """Does what an operator asked for, once; the autoscaler goes on from there."""
    current = pool.current()
    yield from _start(view, pool, replicas - len(current), float("inf"), room, urgent=True)
    surplus = len(current) - replicas
    used = [i for i in current if i.active or i.id in busy]
    starting = [i for i in current if i.state is InstanceState.STARTING]
    for instance in [*_idle(pool, busy), *starting, *used][: max(surplus, 0)]:
        yield _end(pool, instance, "scaled", in_use=instance in used)


def _retire_superseded(pool: Pool) -> Iterator[Action]:
    """Instances of older revisions finish what they do and then stop."""
    for instance in pool.instances.values():
        old = instance.revision.id != pool.revision.id
        if old and instance.state in (InstanceState.STARTING, InstanceState.READY):
            yield _end(pool, instance, "superseded", in_use=instance.active > 0)
        elif instance.state is InstanceState.DRAINING and instance.active == 0:
            yield Stop(pool.revision.function, instance.id, "superseded" if old else "scaled")


def _wind_down(pool: Pool) -> Iterator[Action]:
    function = pool.revision.function
    for waiter in pool.queue:
        error = FunctionNotFound(f"function {function!r} was deleted while this request waited")
        yield Reject(function, waiter.request_id, error)
    for instance in pool.instances.values():
        if instance.state in (InstanceState.STARTING, InstanceState.READY):
            yield _end(pool, instance, "deleted", in_use=instance.active > 0)
        elif instance.state is InstanceState.DRAINING and instance.active == 0:
            yield Stop(function, instance.id, "deleted")


def _end(pool: Pool, instance: Instance, reason: str, *, in_use: bool) -> Stop | Drain:
    act = Drain if in_use else Stop
    return act(pool.revision.function, instance.id, reason)


def _idle(pool: Pool, busy: Set[InstanceId] | None = None) -> list[Instance]:
    """Ready instances without a lease, longest idle first."""
    idle = [
        i
        for i in pool.current()
        if i.idle_since is not None and i.active == 0 and i.id not in (busy or ())
    ]
    return sorted(idle, key=lambda i: (i.idle_since, i.id))


class _Room:
    """Memory that is left on each node while one decision is being made."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._evicted: set[InstanceId] = set()

    @cached_property
    def _free(self) -> dict[NodeId, int]:
        """Counted when first asked for: most decisions start nothing."""
        view = self._view
        return {n.id: n.memory_bytes - view.used_memory_bytes(n.id) for n in view.nodes.values()}

    def fits(self, node: NodeId, memory_bytes: int) -> bool:
        return self._free[node] >= memory_bytes

    def take(self, node: NodeId, memory_bytes: int) -> None:
        self._free[node] -= memory_bytes

    def make(self, view: View, needy: Pool, memory_bytes: int) -> Iterator[Stop]:
        """Evicts idle instances of other functions, least recently used first, until there will
        be room; the start itself follows when they are gone."""
        victims = sorted(
            (
                (instance.idle_since, instance.id, pool, instance)
                for pool in view.pools.values()
                if pool is not needy and not pool.deleted
                for instance in _idle(pool)[: max(len(pool.current()) - pool.revision.scale.min, 0)]
                if instance.id not in self._evicted
            ),
            key=lambda victim: victim[:2],
        )
        leaving: dict[NodeId, int] = {}
        for pool in view.pools.values():
            for instance in pool.instances.values():
                if instance.state is InstanceState.STOPPING or instance.id in self._evicted:
                    size = instance.revision.resources.memory_bytes
                    leaving[instance.node] = leaving.get(instance.node, 0) + size
        for node, free in self._free.items():
            if free + leaving.get(node, 0) >= memory_bytes:
                return  # what already leaves is enough
        for _, _, pool, instance in victims:
            size = instance.revision.resources.memory_bytes
            leaving[instance.node] = leaving.get(instance.node, 0) + size
            self._evicted.add(instance.id)
            yield Stop(pool.revision.function, instance.id, "evicted")
            if self._free[instance.node] + leaving[instance.node] >= memory_bytes:
                return
