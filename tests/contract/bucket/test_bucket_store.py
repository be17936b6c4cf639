"""What a bucket adds to a checkpoint store: uploads with a middle, and objects beside ours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stoker_loader
from stoker.checkpoints.bucket import Bucket
from stoker.checkpoints.bucket_store import ORPHAN_S, BucketStore
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.multipart import PART_BYTES
from stoker.checkpoints.store import Content
from stoker.domain import Artifact, Digest
from stoker.errors import CheckpointInvalid, CheckpointNotFound
from stoker.store.base import StoreUnusable

PARTS = 3


class Interrupted(Exception):
    """A reader of progress who has seen enough."""


def ignore(done_bytes: int, total_bytes: int) -> None:
    """A report that nobody reads."""


def fill(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(PARTS * PART_BYTES))
    return folder


async def recorded(bucket: Bucket) -> tuple[str, Any]:
    """The key of the only record, and what it says."""
    (key,) = [o.key async for o in bucket.objects("checkpoints/", below=False)]
    return key, json.loads(await bucket.get(key, 10_000))


def _steal(record: Any) -> None:
    record["objects"]["config.json"]["key"] = "checkpoints/of/another"


def _climb(record: Any) -> None:
    record["digest"]["files"][0]["name"] = "../config.json"
    record["objects"]["../config.json"] = record["objects"].pop("config.json")


SPOILT: list[Callable[[Any], object]] = [
    lambda record: record.clear(),
    lambda record: record["objects"].clear(),
    lambda record: record["digest"].update(root="blake3:" + "0" * 64),
    lambda record: record["artifact"].update(digest="blake3:" + "0" * 64),
    lambda record: record["digest"]["files"][0].update(size_bytes=-1),
    lambda record: record["digest"]["files"][0].update(size_bytes=1 << 70),
    lambda record: record["digest"]["files"][0].update(chunks=["no digits"]),
    lambda record: record.update(corrupt=["../../another"]),
    _steal,
    _climb,
]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Content]:
    folder = fill(tmp_path / "made")
    digest = stoker_loader.digest(folder)
    return folder, Content(Artifact(Digest(digest.root), 2 + PARTS * PART_BYTES), digest)


async def test_what_is_there_in_part_is_not_there(
    bucket: Bucket, made: tuple[Path, Content]
) -> None:
    folder, content = made
    store = BucketStore(bucket)
    sent: list[str] = []
    bucket.client.meta.events.register(
        "before-parameter-build.s3.*", lambda model, **_: sent.append(model.name)
    )

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes == total_bytes:
            raise Interrupted  # every file is there, and the record is not

    with pytest.raises(Interrupted):
        await store.put(folder, content, interrupt)
    with pytest.raises(CheckpointNotFound):
        await store.content(content.artifact.digest)
    assert [found async for found in store.contents()] == []
    parts = sent.count("UploadPart")
    assert parts == PARTS
    await store.put(folder, content, ignore)
    assert sent.count("UploadPart") == parts, "all parts were there"
    await store.verify(content.artifact.digest, ignore)


async def test_a_damaged_record_is_named_never_believed_and_healed(
    bucket: Bucket, made: tuple[Path, Content], tmp_path: Path
) -> None:
    folder, content = made
    store = BucketStore(bucket)
    await store.put(folder, content, ignore)
    record, written = await recorded(bucket)
    for spoil in SPOILT:
        spoilt = json.loads(json.dumps(written))
        spoil(spoilt)
        await bucket.put(record, json.dumps(spoilt).encode())
        for reading in (store.content, store.locate):
            with pytest.raises(StoreUnusable, match=record):
                await reading(content.artifact.digest)
        assert not await store.is_sound(content.artifact.digest)
    await bucket.put("checkpoints/notes.json", b"somebody else's")
    assert [found async for found in store.contents()] == []
    folder = fill(tmp_path / "again")
    await store.put(folder, content, ignore)
    assert [found async for found in store.contents()] == [content]
    await store.verify(content.artifact.digest, ignore)
    await bucket.put(record, b"{}")
    await store.delete(content.artifact.digest)
    assert [o.key async for o in bucket.objects("")] == ["checkpoints/notes.json"]


async def test_what_a_crash_left_is_deleted_when_asked_for_and_swept_after_a_day(
    bucket: Bucket, made: tuple[Path, Content], tmp_path: Path
) -> None:
    folder, content = made
    now = time.time()
    store = BucketStore(bucket, now=lambda: now)
    digest = content.artifact.digest
    for again in ("once", "twice"):
        await store.put(folder, content, ignore)
        record, _ = await recorded(bucket)
        await bucket.delete([record])  # as far as a delete came
        await store.recover()
        assert [found async for found in bucket.objects("checkpoints/")], "it may be a put"
        if again == "once":
            await store.delete(digest)
            assert [found async for found in bucket.objects("checkpoints/")] == []
            folder = fill(tmp_path / "again")
    with pytest.raises(CheckpointNotFound):
        await store.content(digest)
    now += ORPHAN_S + 60
    await store.recover()
    assert [found async for found in bucket.objects("checkpoints/")] == []
    with pytest.raises(CheckpointNotFound):
        await store.delete(digest)


async def test_a_record_of_another_version_is_left_alone(
    bucket: Bucket, made: tuple[Path, Content]
) -> None:
    folder, content = made
    store = BucketStore(bucket)
    await store.put(folder, content, ignore)
    record, written = await recorded(bucket)
    await bucket.put(record, json.dumps(written | {"version": 2}).encode())
    with pytest.raises(StoreUnusable, match="version 2, and this stoker reads version 1"):
        await store.put(fill(folder), content, ignore)


async def test_an_object_of_another_length_is_no_copy(
    bucket: Bucket, made: tuple[Path, Content]
) -> None:
    """Recorded as it is, by whoever wrote the record."""
    folder, content = made
    store = BucketStore(bucket)
    await store.put(folder, content, ignore)
    record, written = await recorded(bucket)
    short = written["objects"]["weights"]
    await bucket.put(short["key"], b"short")
    found = await bucket.find(short["key"])
    short.update(size_bytes=found.size_bytes, etag=found.etag)
    await bucket.put(record, json.dumps(written).encode())
    with pytest.raises(CheckpointInvalid, match="weights: 5 bytes in the store"):
        await store.verify(content.artifact.digest, ignore)
    # And of the length that it should have, says the record.
    short.update(size_bytes=PARTS * PART_BYTES)
    await bucket.put(record, json.dumps(written).encode())
    assert not await store.is_sound(content.artifact.digest)
    with pytest.raises(CheckpointInvalid, match="weights"):
        await store.verify(content.artifact.digest, ignore)


async def test_a_chunk_that_rotted_under_its_etag_is_named(
    bucket: Bucket, made: tuple[Path, Content]
) -> None:
    """As if under it: the record is told of the other bytes' ETag."""
    folder, content = made
    store = BucketStore(bucket)
    await store.put(folder, content, ignore)
    record, written = await recorded(bucket)
    rotten = written["objects"]["weights"]
    data = bytearray(PARTS * PART_BYTES)
    data[3 * CHUNK_BYTES + 1] = 1
    await bucket.put(rotten["key"], bytes(data))
    rotten["etag"] = (await bucket.find(rotten["key"])).etag
    await bucket.put(record, json.dumps(written).encode())
    with pytest.raises(CheckpointInvalid, match="weights: chunk 3 is corrupt") as caught:
        await store.verify(content.artifact.digest, ignore)
    assert caught.value.details == {"reason": "chunk_mismatch", "file": "weights", "chunk": 3}
    assert not await store.is_sound(content.artifact.digest)
    with pytest.raises(CheckpointInvalid, match="weights was found corrupt"):
        await store.locate(content.artifact.digest)
    await store.put(fill(folder), content, ignore)
    await store.verify(content.artifact.digest, ignore)
    await store.locate(content.artifact.digest)
