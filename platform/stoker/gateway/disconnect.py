"""A client that leaves cancels what was done for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed its connection before the answer was complete."""


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` returns; cancels it when the client disconnects.

    The request's body must have been read. Raises `ClientLeft`, and whatever `work` raises.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_watch(receive))
            result = await work
            watch.cancel()
    except BaseExceptionGroup as group:
        error = _only(group)
        raise error from error.__cause__
    return result


def _only(error: BaseException) -> BaseException:
    """The one exception within groups of one; several stay a group, so that none is lost."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientLeft
