"""The node's cache over a bucket of a real MinIO, whose connections break and who dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import stoker_loader
from integration.node.conftest import WEIGHTS, Make, opened
from stoker.checkpoints.bucket import Bucket, BucketName
from stoker.checkpoints.bucket_store import BucketStore
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.store import StoreUnreachable
from stoker.domain import Digest
from stoker.node.cache import NodeCache
from support.broken_line import broken_line
from support.minio import Minio, executable, running

CHUNKS = 8
SIZE_BYTES = CHUNKS * CHUNK_BYTES
RESET_AFTER_BYTES = 3 << 20
AROUND_BYTES = 1 << 20  # of records, small files and headers


@pytest.fixture
async def own_minio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Minio]:
    if executable() is None:
        pytest.skip("neither minio nor Go is on PATH: `make minio` says how to get it")
    with running(tmp_path / "minio") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


async def pushed(make: Make) -> Digest:
    """A model in a new bucket of the server that the environment names."""
    model = make(1, CHUNKS)
    bucket = Bucket(BucketName("models", ""))
    bucket.client.create_bucket(Bucket="models")
    store = BucketStore(bucket)
    await store.put(model.folder, model.content, lambda *_: None)
    await store.close()
    return model.digest


async def whole(cache: NodeCache, digest: Digest) -> stoker_loader.Digest:
    async with cache.hold(digest) as held:
        if held.kept is not None:
            await asyncio.shield(held.kept)
        return await asyncio.to_thread(stoker_loader.digest, held.path)


async def test_connections_that_are_reset_in_the_middle_cost_their_rest_alone(
    own_minio: Minio, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await pushed(make)
    with broken_line(own_minio.address, RESET_AFTER_BYTES, times=6) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{line.address}")
        store = BucketStore(Bucket(BucketName("models", "")))
        async with opened(tmp_path / "cache", store) as cache:
            assert (await whole(cache, digest)).root == digest
        await store.close()
    assert line.resets == 6
    assert line.passed_bytes < SIZE_BYTES + 6 * RESET_AFTER_BYTES + AROUND_BYTES


async def test_a_server_that_dies_in_the_middle_is_gone_on_with_when_it_is_back(
    own_minio: Minio, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies when some bytes of the weights have come, and those do not come again."""
    digest = await pushed(make)
    with broken_line(own_minio.address, RESET_AFTER_BYTES, 1, on_reset=own_minio.stop) as line:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{line.address}")
        store = BucketStore(Bucket(BucketName("models", "")))
        async with opened(tmp_path / "cache", store) as cache:
            with pytest.raises(StoreUnreachable, match=line.address):
                await whole(cache, digest)
            assert line.resets == 1
            assert await cache.find(digest) is None
            parts = list((tmp_path / "cache").rglob("*.part"))
            assert [part.name for part in parts] == [f"{WEIGHTS}.part"], "what has come stays"
            own_minio.start()
            assert (await whole(cache, digest)).root == digest
            own_minio.stop()
            assert (await whole(cache, digest)).root == digest, "it is on the node"
            assert not list((tmp_path / "cache").rglob("*.part"))
        await store.close()
