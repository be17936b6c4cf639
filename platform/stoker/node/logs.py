"""The log of one worker: the newest lines in memory, all of them in a bounded file, followable."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path

KEPT_LINES = 1000
LONGEST_LINE_BYTES = 16 << 10
FILE_LIMIT_BYTES = 16 << 20
FOLLOWER_BACKLOG_LINES = 1000
TAIL_LINES = 30  # what an error answer carries


class LogBuffer:
    """Written by the driver that reads a worker's output, read by anyone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._followers: set[asyncio.Queue[str | None]] = set()
        self._file = path.open("wb")
        self._written_bytes = 0
        self._closed = False

    def write(self, line: bytes) -> None:
        text = line[:LONGEST_LINE_BYTES].decode(errors="replace").rstrip("\r\n")
        self._lines.append(text)
        if self._written_bytes < FILE_LIMIT_BYTES:
            encoded = text.encode() + b"\n"
            self._written_bytes += len(encoded)
            self._keep(encoded)
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()  # a slow reader loses its oldest lines, never the worker
            follower.put_nowait(text)

    def _keep(self, encoded: bytes) -> None:
        try:
            self._file.write(encoded)
            self._file.flush()
        except OSError as error:
            # A full disk must not stop the function; its newest lines stay readable in memory.
            self._written_bytes = FILE_LIMIT_BYTES
            self._lines.append(f"[log file ends here: {error}]")

    def tail(self, count: int = TAIL_LINES) -> tuple[str, ...]:
        return tuple(self._lines)[-count:]

    async def lines(self, *, follow: bool) -> AsyncGenerator[str]:
        """Yields what is kept; with `follow` also what comes, until the log is closed."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(FOLLOWER_BACKLOG_LINES)
        kept = tuple(self._lines)
        if follow and not self._closed:
            self._followers.add(queue)
        try:
            for line in kept:
                yield line
            while queue in self._followers or not queue.empty():
                line_or_end = await queue.get()
                if line_or_end is None:
                    return
                yield line_or_end
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        """The worker has ended: followers end too."""
        self._closed = True
        self._file.close()
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(None)
