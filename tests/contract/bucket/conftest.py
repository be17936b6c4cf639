"""One MinIO server for all tests, and a bucket of its own for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
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


@pytest.fixture
def names(tmp_path: Path) -> str:
    """A bucket's name that no other test has."""
    return "b-" + tmp_path.name.replace("_", "-").lower()[-50:]


@pytest.fixture
async def bucket(
    minio: Minio, names: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bucket]:
    for name, value in minio.environment.items():
        monkeypatch.setenv(name, value)
    connect().create_bucket(Bucket=names)
    made = Bucket(BucketName(names, ""))
    yield made
    await made.close()
