"""The bounded queue between the event loop, which submits, and the decode loop, which seats."""

from __future__ import annotations

import threading
from collections import deque

from stoker_runtime.errors import Overloaded
from stoker_runtime.generation.generation import Generation


class WaitingRoom:
    """Generations without a slot, first come first served; the only lock of the decode loop."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queue: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, generation: Generation) -> None:
        """Queues a generation.

        Raises:
            Overloaded: the queue is full, or closed because the worker is shutting down.
        """
        with self._changed:
            if self._closed:
                raise Overloaded("this instance is shutting down", code="shutting_down")
            if len(self._queue) >= self._max_waiting:
                raise Overloaded(f"{self._max_waiting} generations wait already", code="queue_full")
            self._queue.append(generation)
            self._changed.notify()

    def leave(self, generation: Generation) -> bool:
        """Takes a generation out again; false when it has been seated already."""
        with self._changed:
            if generation not in self._queue:
                return False
            self._queue.remove(generation)
            return True

    def take(self, count: int) -> list[Generation]:
        """Up to `count` generations that have waited longest."""
        with self._changed:
            return [self._queue.popleft() for _ in range(min(count, len(self._queue)))]

    def close(self) -> None:
        """Refuses whoever comes from now on; those who wait stay."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def wait(self) -> bool:
        """Blocks until someone waits; false when nobody ever will."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            return bool(self._queue)
