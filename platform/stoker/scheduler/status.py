"""What the pools look like from outside: pure views for people and for `scale`."""

from __future__ import annotations

from collections import Counter

from stoker.domain import FunctionName
from stoker.lifecycle import InstanceState
from stoker.scheduler.lease import InstanceStatus, ScaleStatus
from stoker.scheduler.view import Instance, Pool


def settled(pool: Pool | None, replicas: int) -> bool:
    """Whether as many are ready as were asked for, and nothing is on its way up or out. What drains
    takes as long as its requests do and is not waited for."""
    if pool is None:
        return replicas == 0
    passing = (InstanceState.STARTING, InstanceState.STOPPING)
    return len(pool.current()) == replicas and not any(
        i.state in passing for i in pool.instances.values()
    )


def instance_status(pool: Pool, instance: Instance, now: float, wall: float) -> InstanceStatus:
    """One instance; `now` is monotonic and `wall` Unix time, of the same moment, in seconds."""
    deadline_s = None
    if instance.idle_since is not None and len(pool.current()) > pool.revision.scale.min:
        deadline_s = max(0.0, instance.idle_since + pool.revision.scale.keep_alive_s - now)
    return InstanceStatus(
        id=instance.id,
        function=instance.revision.function,
        revision=instance.revision.id,
        node=instance.node,
        state=instance.state.value,
        active=instance.active,
        slots=instance.revision.scale.hard_limit,
        started_at=wall - (now - instance.requested_at),
        idle_deadline_s=deadline_s,
        pid=instance.pid,
    )


def scale_status(function: FunctionName, pool: Pool | None, replicas: int) -> ScaleStatus:
    """How far a function is from the `replicas` that were asked for."""
    states = Counter(i.state for i in pool.instances.values()) if pool else Counter()
    return ScaleStatus(
        function=function,
        replicas=replicas,
        ready=states[InstanceState.READY],
        starting=states[InstanceState.STARTING],
        draining=states[InstanceState.DRAINING],
    )
