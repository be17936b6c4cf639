"""The logs of a function's instances as one stream, whatever node they run on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from stoker.domain import FunctionName, InstanceId, NodeId
from stoker.node.client import NodeClient

KEPT_INSTANCES = 16  # of a function, the newest; older logs are only in their files
BACKLOG_LINES = 1000

_Source = tuple[InstanceId, NodeId]


class FunctionLogs:
    """Knows which instances a function had, and reads their logs from their nodes."""

    def __init__(self, client: Callable[[NodeId], NodeClient]) -> None:
        self._client = client
        self._sources: dict[FunctionName, deque[_Source]] = {}
        self._followers: dict[FunctionName, set[asyncio.Queue[_Source]]] = {}

    def note(self, function: FunctionName, instance_id: InstanceId, node: NodeId) -> None:
        """An instance was started; who follows the function follows it too."""
        source = (instance_id, node)
        self._sources.setdefault(function, deque(maxlen=KEPT_INSTANCES)).append(source)
        for follower in self._followers.get(function, ()):
            if not follower.full():
                follower.put_nowait(source)

    def forget(self, function: FunctionName) -> None:
        self._sources.pop(function, None)

    async def lines(self, function: FunctionName, *, follow: bool) -> AsyncGenerator[str]:
        """Yields `instance-id line`, oldest instance first; with `follow`, then what comes."""
        if not follow:
            for source in tuple(self._sources.get(function, ())):
                async for line in self._of(source, follow=False):
                    yield line
            return
        started: asyncio.Queue[_Source] = asyncio.Queue(BACKLOG_LINES)
        for source in self._sources.get(function, ()):
            started.put_nowait(source)
        followers = self._followers.setdefault(function, set())
        followers.add(started)
        merged: asyncio.Queue[str] = asyncio.Queue(BACKLOG_LINES)
        reading = asyncio.create_task(self._read_all(started, merged), name=f"logs of {function}")
        try:
            while True:
                yield await merged.get()
        finally:
            followers.discard(started)
            reading.cancel()
            await asyncio.wait([reading])

    async def _read_all(self, started: asyncio.Queue[_Source], merged: asyncio.Queue[str]) -> None:
        async with asyncio.TaskGroup() as readers:
            while True:
                readers.create_task(self._read(await started.get(), merged))

    async def _read(self, source: _Source, merged: asyncio.Queue[str]) -> None:
        async with aclosing(self._of(source, follow=True)) as lines:
            async for line in lines:
                await merged.put(line)

    async def _of(self, source: _Source, *, follow: bool) -> AsyncGenerator[str]:
        instance_id, node = source
        lines: AsyncIterator[str] = self._client(node).logs(instance_id, follow=follow)
        async for line in lines:
            yield f"{instance_id} {line}"
