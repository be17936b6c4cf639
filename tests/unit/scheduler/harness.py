"""Drives the pure scheduler as the dispatcher does, with a clock that tests set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from stoker.domain import (
    FunctionName,
    InstanceId,
    NodeId,
    PhaseName,
    RequestId,
    Resources,
    Revision,
    RevisionId,
    RuntimeSpec,
    ScalePolicy,
    StartupPolicy,
)
from stoker.errors import StokerError
from stoker.lifecycle import InstanceState
from stoker.scheduler.events import (
    Action,
    DeadlinePassed,
    Event,
    InstanceExited,
    InstanceReady,
    LeaseReleased,
    NodeChanged,
    Reject,
    RequestArrived,
    Start,
)
from stoker.scheduler.observe import enact, next_deadline, observe
from stoker.scheduler.policy import decide
from stoker.scheduler.view import Instance, Pool, Span, View

NODE = NodeId("node-a")


def revision(
    name: str = "chat",
    number: int = 1,
    *,
    scale: ScalePolicy | None = None,
    startup: StartupPolicy | None = None,
    memory_bytes: int = 1 << 30,
) -> Revision:
    return Revision(
        id=RevisionId(f"{name}-{number:05d}"),
        function=FunctionName(name),
        number=number,
        created_at=0.0,
        content_digest=f"{name}{number}",
        checkpoint=None,
        source=None,
        runtime=RuntimeSpec(),
        resources=Resources(memory_bytes=memory_bytes),
        scale=scale or ScalePolicy(min=0, max=4, target=2, hard_limit=4, keep_alive_s=60.0),
        startup=startup or StartupPolicy(timeout_s=30.0, max_held=100),
        env={},
    )


@dataclass
class Harness:
    """One scheduler with one node, and everything it ever decided."""

    now: float = 1000.0
    view: View = field(default_factory=View)
    actions: list[Action] = field(default_factory=list)
    _ids: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.send(NodeChanged(NODE, memory_bytes=64 << 30, blank_workers=1))

    def send(self, event: Event) -> list[Action]:
        self.view = observe(self.view, event, self.now)
        decided = decide(self.view, event, self.now)
        for action in decided:
            minted = None
            if isinstance(action, Start):
                minted = InstanceId(f"{action.revision.id}-i{next(self._ids)}")
            self.view = enact(self.view, action, self.now, minted)
        self.actions.extend(decided)
        return decided

    def arrive(self, deployed: Revision, count: int = 1, timeout_s: float = 30.0) -> list[Action]:
        decided: list[Action] = []
        for _ in range(count):
            request_id = RequestId(f"r{next(self._ids)}")
            decided += self.send(RequestArrived(request_id, deployed, self.now, timeout_s))
        return decided

    def advance(self, seconds: float) -> list[Action]:
        """Lets time pass, stopping at each deadline on the way as the dispatcher's timer does."""
        end = self.now + seconds
        decided: list[Action] = []
        while (due := next_deadline(self.view, self.now)) is not None and due <= end:
            self.now = due
            decided += self.send(DeadlinePassed())
        self.now = end
        return decided

    def pool(self, name: str = "chat") -> Pool:
        return self.view.pools[FunctionName(name)]

    def instances(self, state: InstanceState, name: str = "chat") -> list[Instance]:
        return [i for i in self.pool(name).instances.values() if i.state is state]

    def ready(self, instance: Instance, load_ms: float = 50.0) -> list[Action]:
        spans = (Span(PhaseName.PROVISION, 5.0), Span(PhaseName.LOAD, load_ms))
        return self.send(
            InstanceReady(instance.revision.function, instance.id, Path("/s"), 1, spans, "claim")
        )

    def all_ready(self, name: str = "chat") -> list[Action]:
        decided: list[Action] = []
        for instance in self.instances(InstanceState.STARTING, name):
            decided += self.ready(instance)
        return decided

    def exit(
        self, instance: Instance, cause: StokerError | None = None, *, permanent: bool = False
    ) -> list[Action]:
        return self.send(InstanceExited(instance.revision.function, instance.id, cause, permanent))

    def release(self, instance_id: InstanceId, name: str = "chat") -> list[Action]:
        return self.send(LeaseReleased(FunctionName(name), instance_id))


def of(kind: type[Action], actions: list[Action]) -> list[Action]:
    return [a for a in actions if isinstance(a, kind)]


def errors(actions: list[Action]) -> list[str]:
    return [a.error.code for a in actions if isinstance(a, Reject)]
