"""Frames on their way from the decode loop's thread to the event loop's streams."""

from __future__ import annotations

import asyncio

from stoker_runtime.contract import DoneFrame, ErrorFrame, Frame

Mailbox = asyncio.Queue[Frame]
"""One stream's frames; holds as many as a context has tokens, so it is never full."""


class Post:
    """Collects a step's frames and wakes the event loop once for all of them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outbox: list[tuple[Mailbox, Frame]] = []

    def put(self, mailbox: Mailbox, frame: Frame) -> None:
        """Adds a frame to this step's."""
        self._outbox.append((mailbox, frame))

    def send(self) -> None:
        """Hands this step's frames over; called from the decode loop's thread."""
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._loop.call_soon_threadsafe(_deliver, outbox)

    def finish(self, stopped: asyncio.Event) -> None:
        """Tells the event loop that the thread has no more to say."""
        self._loop.call_soon_threadsafe(stopped.set)


def is_last(frame: Frame) -> bool:
    """Whether no frame follows."""
    return isinstance(frame, DoneFrame | ErrorFrame)


def _deliver(frames: list[tuple[Mailbox, Frame]]) -> None:
    for mailbox, frame in frames:
        mailbox.put_nowait(frame)
