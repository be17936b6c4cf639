"""A wake-up for whoever waits until something, anything, has changed."""

from __future__ import annotations

import asyncio


class Pulse:
    """Waiters look at the state themselves after each beat; beats nobody waits for are lost."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def beat(self) -> None:
        if self._next is not None:
            self._next.set_result(None)
            self._next = None

    async def wait(self) -> None:
        """Returns at the next beat."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)
