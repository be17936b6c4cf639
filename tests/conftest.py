"""What all tests of the platform share: its loop, and a MinIO server for those that ask."""

from __future__ import annotations

import subprocess
from asyncio import AbstractEventLoop
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from stoker.checkpoints.bucket import Bucket, BucketName, connect
from support.minio import Minio, executable, running


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], AbstractEventLoop]]:
    """The platform runs on uvloop, whose transports differ from asyncio's in small things."""
    return {"uvloop": uvloop.new_event_loop}


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this user cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def remount_read_only() -> Callable[[Path], None]:
    """Makes such a disk one that takes no writes."""

    def remount(disk: Path) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

    return remount
