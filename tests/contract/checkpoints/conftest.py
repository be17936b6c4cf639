"""The checkpoint stores that the conformance suite runs over, and how each of them is spoilt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from stoker.checkpoints.bucket import Bucket, BucketName
from stoker.checkpoints.bucket_store import BucketStore
from stoker.checkpoints.directory import DirectoryStore, in_memory
from stoker.checkpoints.store import CheckpointStore
from stoker.domain import Digest


@dataclass
class Kept:
    """A store, and a hand that reaches behind it: flips a bit of a file at an offset."""

    store: CheckpointStore
    flip: Callable[[Digest, str, int], None]


def flip_in_place(root: Path, digest: Digest, path: str, offset: int) -> None:
    file = root / digest.removeprefix("blake3:") / path
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.chmod(0o600)
    file.write_bytes(data)


def flip_object(bucket: Bucket, digest: Digest, path: str, offset: int) -> None:
    key = f"checkpoints/{digest.removeprefix('blake3:')}/{path}"
    data = bytearray(bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read())
    data[offset] ^= 1
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=bytes(data))


@pytest.fixture(params=["directory", "memory", "bucket"])
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kept]:
    """Each implementation in turn, empty."""
    with ExitStack() as closing:
        match request.param:
            case "directory":
                root = tmp_path / "store"
                made = Kept(DirectoryStore(root), lambda *args: flip_in_place(root, *args))
            case "memory":
                root, store = closing.enter_context(in_memory())
                made = Kept(store, lambda *args: flip_in_place(root, *args))
            case _:
                bucket = Bucket(BucketName(request.getfixturevalue("new_bucket"), ""))
                made = Kept(BucketStore(bucket), lambda *args: flip_object(bucket, *args))
        yield made
        await made.store.close()
