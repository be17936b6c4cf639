"""What a bucket adds to a checkpoint store: uploads with a middle, and objects beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

import stoker_loader
from stoker.checkpoints.bucket import Bucket
from stoker.checkpoints.bucket_store import BucketStore
from stoker.checkpoints.multipart import PART_BYTES
from stoker.checkpoints.store import Content
from stoker.domain import Artifact, Digest
from stoker.errors import CheckpointNotFound
from stoker.store.base import StoreUnusable

PARTS = 3


class Interrupted(Exception):
    """A reader of progress who has seen enough."""


def ignore(done_bytes: int, total_bytes: int) -> None:
    """A report that nobody reads."""


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Content]:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(PARTS * PART_BYTES))
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


async def test_a_damaged_record_is_named_and_never_believed(
    bucket: Bucket, made: tuple[Path, Content]
) -> None:
    folder, content = made
    store = BucketStore(bucket)
    await store.put(folder, content, ignore)
    (record,) = [o.key async for o in bucket.objects("checkpoints/") if o.key.count("/") == 1]
    await bucket.put(record, b"{}")
    with pytest.raises(StoreUnusable, match=record):
        await store.content(content.artifact.digest)
