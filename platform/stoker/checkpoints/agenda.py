"""What is to be looked at, and when at the earliest."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class Agenda:
    """Which folders are to be looked at, and when at the earliest."""

    at: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, name: str, at: float) -> None:
        self.at[name] = at
        self.changed.set()

    def due(self, now: float) -> list[str]:
        """Those whose time has come, which leave the agenda."""
        names = [name for name, at in self.at.items() if at <= now]
        for name in names:
            del self.at[name]
        return names

    def next_at(self) -> float:
        return min(self.at.values(), default=float("inf"))
