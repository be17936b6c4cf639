"""Work that must come to its end even when nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import ParamSpec, TypeVar
from weakref import WeakValueDictionary

from stoker.domain import Digest

T = TypeVar("T")
P = ParamSpec("P")


class Turns:
    """A lock for each digest: who changes an artifact does so alone."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[Digest, asyncio.Lock] = WeakValueDictionary()

    def of(self, digest: Digest) -> asyncio.Lock:
        """To be held by `async with`, which keeps it."""
        return self._locks.setdefault(digest, asyncio.Lock())


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


async def some_at_once(limit: int, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Does the jobs in their order, at most `limit` at a time. The first error, or a cancellation,
    ends those under way before it is raised."""
    left = iter(jobs)

    async def work() -> None:
        for job in left:
            await job()

    workers = [asyncio.create_task(work()) for _ in range(limit)]
    if not workers:
        return
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await to_the_end(asyncio.wait(workers))
