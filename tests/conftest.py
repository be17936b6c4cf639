"""What all tests of the platform share."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """The platform runs on uvloop, whose transports differ from asyncio's in small things."""
    return {"uvloop": uvloop.new_event_loop}
