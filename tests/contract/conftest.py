"""One MinIO server for all tests of this folder, and a bucket of its own for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.checkpoints.bucket import Bucket, BucketName, connect
from support.minio import Minio, executable, running


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Minio]:
    if executable() is None:
        pytest.skip("neither minio nor Go is on PATH: `make minio` says how to get it")
    with running(tmp_path_factory.mktemp("minio")) as server:
        yield server


@contextmanager
def known(server: Minio) -> Iterator[None]:
    """The server is the one that this process's environment names."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield


@pytest.fixture
def new_bucket(minio: Minio, tmp_path: Path) -> Iterator[str]:
    """An empty bucket, whose name no other test has, of the server that the environment names."""
    name = "b-" + tmp_path.name.replace("_", "-").lower()[-50:]
    with known(minio):
        connect().create_bucket(Bucket=name)
        yield name


@pytest.fixture
async def bucket(new_bucket: str) -> AsyncIterator[Bucket]:
    made = Bucket(BucketName(new_bucket, ""))
    yield made
    await made.close()
