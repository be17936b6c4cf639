"""Whoever follows an agent's events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from stoker.node.wire import AgentEvent


@dataclass(slots=True)
class Subscribers:
    """Each has a queue; one that is full means a control plane that has to begin anew."""

    queues: set[asyncio.Queue[AgentEvent | None]] = field(default_factory=set)

    def publish(self, event: AgentEvent | None) -> None:
        for queue in list(self.queues):
            if queue.full():
                # It must reconnect and gets a snapshot: no event is silently missing.
                self.queues.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)
