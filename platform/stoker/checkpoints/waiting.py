"""Work that must come to its end even when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def to_the_end(work: Awaitable[T], *, on_cancel: Callable[[], None] | None = None) -> T:
    """Waits for `work`; when cancelled, calls `on_cancel`, lets `work` end, and is cancelled then.

    So whoever cleans up behind a cancelled wait never meets work that is still going on.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue  # the first one is raised below
        if not future.cancelled():
            future.exception()  # nobody is there to hear it: the cancellation goes first
        raise


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` in a thread; a cancelled wait ends when the thread has."""
    loop = asyncio.get_running_loop()
    return await to_the_end(loop.run_in_executor(None, partial(work, *args, **kwargs)))
