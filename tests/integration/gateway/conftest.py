"""A gateway on a loopback port, over a scripted instance on a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from integration.gateway.peer import MemoryLeasing, Peer
from stoker.checkpoints.directory import DirectoryStore
from stoker.checkpoints.registry import Registry
from stoker.config import Settings
from stoker.domain import Artifact, Digest, EngineName, FunctionName, Revision, RuntimeSpec
from stoker.gateway.app import create_app
from stoker.gateway.instances import Instances
from stoker.gateway.timelines import Timelines
from stoker.listener import Listener, bind_tcp
from stoker.store.catalog import Catalog
from stoker.store.draft import RevisionDraft
from stoker.store.memory import MemoryStore
from stoker.telemetry import Metrics

MAX_BODY_BYTES = 64 << 10
HOLD_S = 0.05  # in place of 15 s, where a test wants to see what comes after it
SEED = 4711
CHECKPOINT = Artifact(Digest("blake3:" + "a" * 64), size_bytes=1234, name="smol")


@dataclass
class Platform:
    """Everything a test touches: the address, who answers behind it, and what was recorded."""

    url: str
    peer: Peer
    leasing: MemoryLeasing
    catalog: Catalog
    timelines: Timelines
    metrics: Metrics
    instances: Instances
    http: httpx.AsyncClient
    client: openai.AsyncOpenAI
    revisions: dict[str, Revision] = field(default_factory=dict)

    @property
    def sync_client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def sockets() -> Iterator[Path]:
    # Unix socket paths are short (108 bytes), shorter than pytest's own temporary folders.
    with tempfile.TemporaryDirectory(prefix="gw-") as folder:
        yield Path(folder)


@pytest.fixture
async def platform(sockets: Path, request: pytest.FixtureRequest) -> AsyncIterator[Platform]:
    options = getattr(request, "param", {})
    async with platform_over(sockets, **options) as running:
        yield running


@contextlib.asynccontextmanager
async def platform_over(sockets: Path, **options: object) -> AsyncIterator[Platform]:
    store = MemoryStore()
    catalog = Catalog(store)
    await catalog.put_artifact(CHECKPOINT)
    leasing, peer = MemoryLeasing(), Peer(sockets / "a.sock")
    leasing.add("instance-a", peer)
    timelines, metrics = Timelines(), Metrics()
    instances = Instances(lambda: set(leasing.peers))
    app = create_app(
        catalog=catalog,
        registry=Registry(
            sockets / "home", catalog, DirectoryStore(sockets / "home" / "checkpoints")
        ),
        leasing=leasing,
        settings=Settings(home=sockets, max_body_bytes=MAX_BODY_BYTES),
        instances=instances,
        timelines=timelines,
        metrics=metrics,
        draw_seed=lambda: SEED,
        **options,
    )
    bound = bind_tcp("127.0.0.1", 0)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    server = Listener(app, bound, drain_timeout_s=1)
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(peer.listening())
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        serving = tasks.create_task(server.run_until_stopped())
        await server.listening.wait()
        running = Platform(
            url=url,
            peer=peer,
            leasing=leasing,
            catalog=catalog,
            timelines=timelines,
            metrics=metrics,
            instances=instances,
            http=httpx.AsyncClient(base_url=url, trust_env=False, timeout=10),
            client=openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0),
        )
        await _deploy(running)
        try:
            yield running
        finally:
            await running.client.close()
            await running.http.aclose()
            instances.close()
            server.stop()
            await serving
    await store.close()


async def _deploy(platform: Platform) -> None:
    engines = {
        "chat": EngineName.CAUSAL_LM,
        "embed": EngineName.EMBEDDING,
        "echo": EngineName.HANDLER,
        "auto": EngineName.AUTO,
    }
    for name, engine in engines.items():
        draft = RevisionDraft(
            FunctionName(name),
            checkpoint=None if engine is EngineName.HANDLER else CHECKPOINT,
            runtime=RuntimeSpec(engine=engine),
        )
        platform.revisions[name], _ = await platform.catalog.deploy(draft, now=1_700_000_000.0)
