"""A copy of an artifact on a node, in the hands of whoever needs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import stoker_loader


@dataclass(frozen=True, slots=True)
class Held:
    """A copy that stays on the node while it is held. Its weights may still arrive; then `arrival`
    ends when the last byte has, and `kept` when all files are on the disk under their names; or
    they say why not. Both are others' as well: to be awaited through `asyncio.shield`."""

    path: Path
    arrival: asyncio.Future[Arrived] | None = None
    kept: asyncio.Future[None] | None = None


@dataclass(frozen=True, slots=True)
class Arrived:
    """How a copy came."""

    size_bytes: int  # brought from elsewhere
    duration_s: float
    at: float  # when it had, of the monotonic clock


async def resident_bytes(path: Path) -> int:
    """What the page cache holds of a folder now, as `mincore` says."""
    residency = await asyncio.to_thread(stoker_loader.residency, path)
    return residency.resident_bytes
