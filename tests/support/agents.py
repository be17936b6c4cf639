"""One real agent over real worker processes, with folders for a cache."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from stoker.checkpoints.store import Report
from stoker.domain import Digest, FunctionName, InstanceId, NodeId, RevisionId
from stoker.errors import CheckpointNotFound
from stoker.node.agent import Agent
from stoker.node.counters import Counters
from stoker.node.dram import Dram
from stoker.node.drivers.process import ProcessDriver
from stoker.node.held import Dropping, Held
from stoker.node.tiers import Tiers
from stoker.node.wire import AgentEvent, CacheState, NodeState, StartInstance
from stoker_runtime.contract import EngineName
from support.handlers import ECHO, write_handler

NODE = NodeId("node-a")


class FolderCache:
    """A cache whose artifacts are folders that a test made."""

    def __init__(self, folders: dict[Digest, Path]) -> None:
        self._folders = folders
        self.pinned: frozenset[Digest] = frozenset()

    @asynccontextmanager
    async def hold(self, digest: Digest) -> AsyncIterator[Held]:
        if digest not in self._folders:
            raise CheckpointNotFound(f"no artifact {digest}")
        yield Held(self._folders[digest])

    async def find(self, digest: Digest) -> Path | None:
        return self._folders.get(digest)

    async def whole(self, digest: Digest) -> Path | None:
        return self._folders.get(digest)

    async def resident_bytes(self, digest: Digest) -> int:
        return 0

    async def state(self) -> CacheState:
        return CacheState()

    async def evict(self, digest: Digest) -> None:
        del self._folders[digest]

    async def verify(self, digest: Digest, report: Report) -> None:
        raise CheckpointNotFound(f"no artifact {digest}")

    async def pin(self, digests: frozenset[Digest]) -> None:
        self.pinned = digests

    def when_dropping(self, dropping: Dropping) -> None:
        """Nothing is ever dropped."""


@dataclass
class RunningAgent:
    agent: Agent
    events: AsyncGenerator[AgentEvent]
    folders: dict[Digest, Path]
    root: Path

    async def next(self, kind: type) -> AgentEvent:
        """The next event of this kind; others are passed over."""
        async for event in self.events:
            if isinstance(event, kind):
                return event
        raise AssertionError(f"the agent closed before a {kind.__name__} came")

    async def pool_full(self, size: int) -> None:
        async for event in self.events:
            if isinstance(event, NodeState) and event.blank_workers == size:
                return

    def start(self, instance_id: str, code: str = ECHO, **changes: object) -> None:
        source = Digest(f"blake3:{instance_id}")
        self.folders[source] = write_handler(self.root / instance_id, code)
        self.agent.start(
            StartInstance(
                instance_id=InstanceId(instance_id),
                function=FunctionName("echo"),
                revision=RevisionId("echo-00001"),
                source=source,
                engine=EngineName.HANDLER,
                handler="handler.py",
            ).model_copy(update=changes)
        )


@asynccontextmanager
async def run_agent(root: Path, warm_pool: int = 1) -> AsyncIterator[RunningAgent]:
    """An agent whose sockets, logs and handlers lie under `root`."""
    run_dir, log_dir = root / "run", root / "logs"
    run_dir.mkdir(mode=0o700)
    log_dir.mkdir()
    folders: dict[Digest, Path] = {}
    counter, counters = itertools.count(), Counters()
    async with asyncio.TaskGroup() as tasks:
        agent = Agent(
            NODE,
            ProcessDriver(run_dir, log_dir, os.environ),
            Tiers(FolderCache(folders), Dram(0, counters), counters, tasks),
            warm_pool=warm_pool,
            memory_bytes=8 << 30,
            name_worker=lambda: f"w{next(counter)}",
            tasks=tasks,
        )
        events = agent.events()
        agent.open()
        yield RunningAgent(agent, events, folders, root / "functions")
        await agent.close(grace_s=2)
        await events.aclose()
