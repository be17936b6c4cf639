"""How the view follows what happens: pure reducers, one an event and one an action."""

from __future__ import annotations

from dataclasses import replace

from stoker.domain import FunctionName, InstanceId, NodeId, RequestId, Revision
from stoker.errors import StokerError
from stoker.lifecycle import (
    BREAKER,
    INSTANCE,
    BreakerEvent,
    BreakerState,
    InstanceEvent,
    InstanceState,
    advance,
)
from stoker.scheduler import cost, scaling
from stoker.scheduler.events import (
    Action,
    DeadlinePassed,
    Drain,
    Event,
    FirstToken,
    FunctionDeleted,
    Grant,
    InstanceExited,
    InstanceReady,
    InstanceSuspected,
    LeaseReleased,
    NodeChanged,
    NodeLeft,
    Reject,
    RequestArrived,
    RequestCancelled,
    RevisionDeployed,
    ScaleRequested,
    Start,
    Stop,
)
from stoker.scheduler.view import Breaker, Instance, Node, Pool, View, Waiter


def observe(view: View, event: Event, now: float) -> View:
    """Returns the view in which `event` has happened."""
    match event:
        case RequestArrived():
            view = with_revision(view, event.revision)
            waiter = Waiter(event.request_id, event.arrived_at, event.arrived_at + event.timeout_s)
            pool = view.pools[event.revision.function]
            return _with_pool(view, replace(pool, queue=(*pool.queue, waiter)))
        case RequestCancelled():
            return _without_waiter(view, event.function, event.request_id)
        case LeaseReleased():
            return _released(view, event, now)
        case FirstToken():
            return _first_token(view, event)
        case InstanceSuspected():
            return _suspected(view, event)
        case InstanceReady():
            return _ready(view, event, now)
        case InstanceExited():
            return _exited(view, event, now)
        case NodeChanged():
            node = Node(event.node, event.memory_bytes, event.blank_workers, event.resident_bytes)
            return replace(view, nodes={**view.nodes, node.id: node})
        case NodeLeft():
            return _node_left(view, event.node)
        case RevisionDeployed():
            return with_revision(view, event.revision)
        case ScaleRequested():
            return _wanted_by_hand(view, event, now)
        case FunctionDeleted():
            pool_or_none = view.pools.get(event.function)
            if pool_or_none is None:
                return view
            return _with_pool(view, replace(pool_or_none, deleted=True))
        case DeadlinePassed():
            return _cooled(view, now)


def enact(view: View, action: Action, now: float, instance_id: InstanceId | None = None) -> View:
    """Returns the view in which `action` was taken; `instance_id` names what a `Start` starts."""
    match action:
        case Grant():
            # On the way of every warm request: the pool is made anew once, not for each half.
            pool = view.pools[action.function]
            instance = pool.instances[action.instance_id]
            taken = replace(instance, active=instance.active + 1, idle_since=None)
            instances = {**pool.instances, taken.id: taken}
            queue = _without(pool.queue, action.request_id)
            return _with_pool(view, replace(pool, queue=queue, instances=instances))
        case Reject():
            return _without_waiter(view, action.function, action.request_id)
        case Start():
            assert instance_id is not None
            return _with_instance(
                view,
                Instance(
                    id=instance_id,
                    revision=action.revision,
                    node=action.node,
                    state=InstanceState.STARTING,
                    requested_at=now,
                    predicted_ms=action.predicted_ms,
                ),
            )
        case Stop():
            return _step(view, action.function, action.instance_id, InstanceEvent.STOP)
        case Drain():
            return _step(view, action.function, action.instance_id, InstanceEvent.DRAIN)


def with_revision(view: View, revision: Revision) -> View:
    """The newest revision that was seen has the function's traffic."""
    pool = view.pools.get(revision.function)
    if pool is None or pool.deleted:
        survivors = pool.instances if pool else {}
        return _with_pool(view, Pool(revision, instances=survivors))
    if revision.number > pool.revision.number:
        # A new revision starts with a clean record: it may be the repair.
        return _with_pool(view, replace(pool, revision=revision, breaker=Breaker()))
    return view


def next_deadline(view: View, now: float) -> float | None:
    """When something in the view becomes due without anything else happening. What is overdue
    was decided upon already and is looked at again with every event."""
    due: list[float] = []
    for pool in view.pools.values():
        due.extend(w.deadline for w in pool.queue)
        if pool.breaker.state is BreakerState.OPEN:
            due.append(pool.breaker.open_until)
        current = pool.current()
        if len(current) > pool.revision.scale.min:
            keep_alive_s = pool.revision.scale.keep_alive_s
            due.extend(i.idle_since + keep_alive_s for i in current if i.idle_since is not None)
    return min((at for at in due if at > now), default=None)


def _wanted_by_hand(view: View, event: ScaleRequested, now: float) -> View:
    """What an operator asks for counts as use: keep-alive begins anew for what is idle."""
    view = with_revision(view, event.revision)
    for instance in view.pools[event.revision.function].instances.values():
        if instance.idle_since is not None:
            view = _with_instance(view, replace(instance, idle_since=now))
    return view


def _ready(view: View, event: InstanceReady, now: float) -> View:
    pool = view.pools.get(event.function)
    instance = pool.instances.get(event.instance_id) if pool else None
    if pool is None or instance is None:
        return view
    state = advance(INSTANCE, instance.state, InstanceEvent.LOADED)
    if state is instance.state:
        return view  # nothing new
    instance = replace(
        instance,
        state=state,
        ready_at=now,
        idle_since=now,
        socket=event.socket,
        pid=event.pid,
        spans=event.spans,
    )
    learned = cost.learn(
        view.calibration, instance.node, instance.revision.id, event.spans, event.provisioned
    )
    return replace(_with_instance(view, instance), calibration=learned)


def _exited(view: View, event: InstanceExited, now: float) -> View:
    pool = view.pools.get(event.function)
    instance = pool.instances.get(event.instance_id) if pool else None
    if pool is None or instance is None:
        return view
    assert advance(INSTANCE, instance.state, InstanceEvent.EXITED) is InstanceState.GONE
    instances = {i: v for i, v in pool.instances.items() if i != event.instance_id}
    if pool.deleted and not instances and not pool.queue:
        return replace(view, pools={f: p for f, p in view.pools.items() if f != event.function})
    breaker = pool.breaker
    stopped = instance.state is InstanceState.STOPPING
    if event.cause is not None and not stopped and instance.revision.id == pool.revision.id:
        breaker = _failed(breaker, event.cause, now)
    return _with_pool(view, replace(pool, instances=instances, breaker=breaker))


def _failed(breaker: Breaker, cause: StokerError, now: float) -> Breaker:
    failures = breaker.failures + 1
    breaker = replace(breaker, failures=failures, cause=cause)
    if failures < scaling.BREAKER_THRESHOLD:
        return breaker
    return replace(
        breaker,
        state=advance(BREAKER, breaker.state, BreakerEvent.TRIPPED),
        open_until=now + scaling.breaker_open_s(failures),
    )


def _released(view: View, event: LeaseReleased, now: float) -> View:
    pool = view.pools.get(event.function)
    instance = pool.instances.get(event.instance_id) if pool else None
    if pool is None or instance is None:
        return view  # it died before its lease ended
    assert instance.active > 0, f"{instance.id} has no lease to release"
    active = instance.active - 1
    idle_since = now if active == 0 and instance.state is InstanceState.READY else None
    view = _with_instance(view, replace(instance, active=active, idle_since=idle_since))
    pool = view.pools[event.function]
    if pool.breaker.failures and instance.state is InstanceState.READY:
        # Surviving a request, not loading, is the proof that a function works.
        advance(BREAKER, pool.breaker.state, BreakerEvent.SUCCEEDED)
        view = _with_pool(view, replace(pool, breaker=Breaker()))
    return view


def _first_token(view: View, event: FirstToken) -> View:
    pool = view.pools.get(event.function)
    instance = pool.instances.get(event.instance_id) if pool else None
    if instance is None:
        return view
    learned = cost.learn_prefill(
        view.calibration, instance.node, instance.revision.id, event.prefill_ms
    )
    return replace(view, calibration=learned)


def _suspected(view: View, event: InstanceSuspected) -> View:
    pool = view.pools.get(event.function)
    instance = pool.instances.get(event.instance_id) if pool else None
    if instance is None or instance.state is not InstanceState.READY:
        return view
    return _step(view, event.function, event.instance_id, InstanceEvent.DRAIN)


def _cooled(view: View, now: float) -> View:
    for pool in view.pools.values():
        if pool.breaker.state is BreakerState.OPEN and pool.breaker.open_until <= now:
            state = advance(BREAKER, pool.breaker.state, BreakerEvent.COOLED)
            view = _with_pool(view, replace(pool, breaker=replace(pool.breaker, state=state)))
    return view


def _node_left(view: View, node: NodeId) -> View:
    return replace(view, nodes={n: v for n, v in view.nodes.items() if n != node})


def _step(
    view: View, function: FunctionName, instance_id: InstanceId, event: InstanceEvent
) -> View:
    instance = view.pools[function].instances[instance_id]
    state = advance(INSTANCE, instance.state, event)
    return _with_instance(view, replace(instance, state=state, idle_since=None))


def _with_pool(view: View, pool: Pool) -> View:
    # Spelled out: each warm request passes here four times, and `replace` costs ten calls.
    return View({**view.pools, pool.revision.function: pool}, view.nodes, view.calibration)


def _with_instance(view: View, instance: Instance) -> View:
    pool = view.pools[instance.revision.function]
    return _with_pool(view, replace(pool, instances={**pool.instances, instance.id: instance}))


def _without_waiter(view: View, function: FunctionName, request_id: RequestId) -> View:
    pool = view.pools.get(function)
    if pool is None:
        return view
    return _with_pool(view, replace(pool, queue=_without(pool.queue, request_id)))


def _without(queue: tuple[Waiter, ...], request_id: RequestId) -> tuple[Waiter, ...]:
    return tuple(waiter for waiter in queue if waiter.request_id != request_id)
