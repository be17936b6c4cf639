"""One call in a thread of its own, which stops when the task that waits for it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from stoker_loader.errors import LoadCancelledError

T = TypeVar("T")


class Watch:
    """What a call reports its progress to. It runs in the call's thread and reports in the loop."""

    def __init__(self, progress: Callable[..., object] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._progress = progress
        self.error: Exception | None = None

    def __call__(self, *facts: object) -> None:
        """Raise what is to stop the call, or report."""
        if self.error is not None:
            raise self.error
        if self._progress is not None:
            self._loop.call_soon_threadsafe(self._report, *facts)

    def stop(self, error: Exception) -> None:
        """End the call, at its next report, by this error; the first one counts."""
        self.error = self.error or error

    def _report(self, *facts: object) -> None:
        if self._progress is None or self.error is not None:
            return
        try:
            self._progress(*facts)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets it
            self.stop(error)


async def in_thread(
    call: Callable[[Watch], T],
    progress: Callable[..., object] | None = None,
    discard: Callable[[T], object] | None = None,
) -> T:
    """Return what `call` returns, without blocking the loop.

    `call` gets the progress callback to pass on; `progress` itself runs in the loop, and what it
    raises stops the call and is raised here. When the task is cancelled the call is stopped, and
    the task ends when it has: nothing goes on behind it. What a call returned all the same goes to
    `discard`.

    Each call has a thread of its own: in a pool, calls that wait for bytes could hold up the one
    that brings them.
    """
    watch = Watch(progress)
    executor = ThreadPoolExecutor(1, thread_name_prefix="stoker-loader")
    try:
        work = asyncio.wrap_future(executor.submit(copy_context().run, call, watch))
    finally:
        executor.shutdown(wait=False)  # the thread ends with its one call
    try:
        result = await asyncio.shield(work)
    except asyncio.CancelledError as cancelled:
        stopped = LoadCancelledError("the task that waited for it was cancelled")
        watch.stop(stopped)
        await _ended(work)
        error = work.exception()
        if error is None and discard is not None:
            discard(work.result())
        if error is None or error is watch.error:
            raise
        raise cancelled from error
    if watch.error is not None:  # by the last report, when the work was done
        if discard is not None:
            discard(result)
        raise watch.error
    return result


async def _ended(work: asyncio.Future[T]) -> None:
    """Wait until the work has ended, however often the task is cancelled meanwhile."""
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            continue
