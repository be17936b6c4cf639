"""A store elsewhere whose files are served by this process, and caches over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import stoker_loader
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.store import Content, Signed, StoreUnreachable
from stoker.domain import Artifact, Digest
from stoker.errors import CheckpointNotFound
from stoker.node.cache import NodeCache, RemoteStore
from stoker.node.counters import Counters
from stoker.node.held import Cache
from support.object_store import ObjectStore, served

CHUNKS = 4  # and as many tensors, the first of which lies in the first chunk
HEADER_BYTES = 4096  # more than the header of a model takes
WEIGHTS = "model.safetensors"
SIGNED_UNTIL = 1000.0


@dataclass
class Model:
    """An artifact, and the servers of its files."""

    content: Content
    stores: dict[str, ObjectStore]
    folder: Path

    @property
    def digest(self) -> Digest:
        return self.content.artifact.digest

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.content.digest.files)

    @property
    def weights(self) -> ObjectStore:
        return self.stores[WEIGHTS]


@dataclass
class Remote:
    """A store elsewhere that counts who asks it."""

    models: dict[Digest, Model] = field(default_factory=dict)
    located: list[Digest] = field(default_factory=list)
    down: bool = False

    async def locate(self, digest: Digest) -> Signed:
        self.located.append(digest)
        if self.down:
            raise StoreUnreachable("it is down")
        if digest not in self.models:
            raise CheckpointNotFound(f"no {digest}")
        model = self.models[digest]
        sources = {
            path: stoker_loader.Source(store.url, store.etag)
            for path, store in model.stores.items()
        }
        return Signed(model.content, sources, expires_at=SIGNED_UNTIL)


Make = Callable[..., Model]


@pytest.fixture
def remote() -> Remote:
    return Remote()


@pytest.fixture
def make(tmp_path: Path, remote: Remote) -> Iterator[Make]:
    with ExitStack() as closing:

        def make(seed: int, chunks: int = CHUNKS, weights_bytes: int | None = None) -> Model:
            folder = tmp_path / f"made-{seed}"
            folder.mkdir()
            for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
                (folder / name).write_text(f'{{"{name}": {seed}}}')
            each_bytes = ((weights_bytes or chunks * CHUNK_BYTES) - HEADER_BYTES) // chunks
            random = np.random.default_rng(seed)
            tensors = {
                f"t{n}": random.integers(0, 255, each_bytes, np.uint8) for n in range(chunks)
            }
            (folder / WEIGHTS).write_bytes(save(tensors))
            digest = stoker_loader.digest(folder)
            stores = {
                file.name: closing.enter_context(
                    served(ObjectStore((folder / file.name).read_bytes()))
                )
                for file in digest.files
            }
            size_bytes = sum(file.size_bytes for file in digest.files)
            content = Content(Artifact(Digest(digest.root), size_bytes), digest)
            made = remote.models[content.artifact.digest] = Model(content, stores, folder)
            return made

        yield make


@asynccontextmanager
async def opened(
    root: Path,
    remote: RemoteStore,
    budget_bytes: int | None = None,
    now: float = 0.0,
    counters: Counters | None = None,
) -> AsyncIterator[NodeCache]:
    async with asyncio.TaskGroup() as tasks:
        cache = NodeCache(
            root,
            remote,
            budget_bytes=budget_bytes,
            counters=counters or Counters(),
            tasks=tasks,
            wall_clock=lambda: now,
        )
        await cache.open()
        yield cache


async def brought(cache: Cache, model: Model) -> tuple[Path, int]:
    """The folder with all of its files, as whoever loads them finds it; and what had to come."""
    async with cache.hold(model.digest) as held:
        arrived = await asyncio.shield(held.arrival) if held.arrival else None
        if held.kept:
            await asyncio.shield(held.kept)
        assert stoker_loader.digest(held.path) == model.content.digest
        return held.path, arrived.size_bytes if arrived else 0
