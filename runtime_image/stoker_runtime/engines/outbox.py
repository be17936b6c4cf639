"""Hands lines from one thread to one task: in order, in batches, bounded, either side may leave."""

from __future__ import annotations

import asyncio
import threading
from collections import deque

MAX_HELD_LINES = 256


class ReaderGone(Exception):
    """Nobody will read what the writer still makes."""


class Outbox:
    """A bounded pipe from a thread (`put`, `finish`) to the event loop (`take`, `leave`).

    A thread that is ahead waits for room; a task that is ahead awaits. One wake-up of the loop
    covers all lines that are there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, held_lines: int = MAX_HELD_LINES) -> None:
        self._loop = loop
        self._held_lines = held_lines
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._readable = asyncio.Event()
        self._finished = False
        self._reader_gone = False

    def put(self, line: bytes) -> None:
        """Called by the thread: waits for room.

        Raises:
            ReaderGone: the reader has left.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._reader_gone or len(self._lines) < self._held_lines)
            if self._reader_gone:
                raise ReaderGone
            self._lines.append(line)
            first = len(self._lines) == 1
        if first:
            self._loop.call_soon_threadsafe(self._readable.set)

    def finish(self) -> None:
        """Called by the thread, once, as its last act."""
        with self._changed:
            self._finished = True
        self._loop.call_soon_threadsafe(self._readable.set)

    async def take(self) -> list[bytes]:
        """Called by the task: every line that is there; an empty list is the end."""
        while True:
            await self._readable.wait()
            with self._changed:
                self._readable.clear()
                lines = list(self._lines)
                self._lines.clear()
                if self._finished:
                    self._readable.set()  # the end stays to be taken
                self._changed.notify()
                if lines or self._finished:
                    return lines

    def leave(self) -> None:
        """Called by the task: no more is read, and the thread learns so at its next `put`."""
        with self._changed:
            self._reader_gone = True
            self._lines.clear()
            self._changed.notify()
