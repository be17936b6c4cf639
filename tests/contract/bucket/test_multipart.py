"""Uploads of files in parts, on a real MinIO server: resumed, never half there."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

import pytest

from stoker.checkpoints.bucket import Bucket, BucketName
from stoker.checkpoints.bucket_errors import ObjectNotFound
from stoker.checkpoints.multipart import MAX_PARTS_AT_ONCE, PART_BYTES, upload
from stoker.checkpoints.store import StoreUnreachable
from support.minio import running

PARTS = 7
FILE_BYTES = (PARTS - 1) * PART_BYTES + 12_345


class Interrupted(Exception):
    """A reader of progress who has seen enough."""


class Counted:
    """The parts that were sent to a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self.parts: list[int] = []
        bucket.client.meta.events.register("before-parameter-build.s3.UploadPart", self._seen)

    def _seen(self, params: dict[str, int], **_: object) -> None:
        self.parts.append(params["PartNumber"])


def fill(path: Path, seed: int, size_bytes: int = FILE_BYTES) -> None:
    path.write_bytes(Random(seed).randbytes(size_bytes))


def data(path: Path) -> bytes:
    return path.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    fill(path, seed=1)
    return path


async def content(bucket: Bucket, key: str) -> bytes:
    return b"".join([piece async for piece in bucket.read(await bucket.find(key))])


@pytest.mark.parametrize("size_bytes", [0, 1, PART_BYTES, PART_BYTES + 1])
async def test_a_file_of_any_size_arrives(bucket: Bucket, tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "f"
    fill(path, 2, size_bytes)
    seen: list[int] = []
    folder = Bucket(BucketName(bucket.name, "team one/"), bucket.client)
    stored = await upload(folder, "a b/ä", path, seen.append)
    assert (stored.key, stored.size_bytes) == ("a b/ä", size_bytes)
    assert (seen[-1], seen) == (size_bytes, sorted(seen))
    assert await content(bucket, "team one/a b/ä") == data(path)


async def test_an_upload_goes_on_where_one_ended(bucket: Bucket, file: Path) -> None:
    counted = Counted(bucket)

    def interrupt(done_bytes: int) -> None:
        if done_bytes >= 2 * PART_BYTES:
            raise Interrupted

    with pytest.raises(Interrupted):
        await upload(bucket, "x", file, interrupt)
    with pytest.raises(ObjectNotFound):
        await bucket.find("x")
    before = len(counted.parts)
    assert 2 <= before <= 2 + MAX_PARTS_AT_ONCE < PARTS
    await upload(bucket, "x", file)
    assert sorted(counted.parts) == list(range(1, PARTS + 1)), "a part was sent twice, or not"
    assert await content(bucket, "x") == data(file)


async def test_parts_of_another_file_are_sent_again(bucket: Bucket, file: Path) -> None:
    def interrupt(done_bytes: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        await upload(bucket, "x", file, interrupt)
    fill(file, seed=3)
    await upload(bucket, "x", file)
    assert await content(bucket, "x") == data(file)


async def test_a_replacement_is_whole_or_not_there(bucket: Bucket, file: Path) -> None:
    await bucket.put("x", b"old")

    def look(done_bytes: int) -> None:
        seen = bucket.client.get_object(Bucket=bucket.name, Key="x")["Body"].read()
        assert seen == b"old"

    await upload(bucket, "x", file, look)
    assert await content(bucket, "x") == data(file)


async def test_an_upload_that_somebody_aborts_begins_again(bucket: Bucket, file: Path) -> None:
    aborted: list[str] = []

    def abort(done_bytes: int) -> None:
        if aborted:
            return
        (begun,) = bucket.client.list_multipart_uploads(Bucket=bucket.name, Prefix="x")["Uploads"]
        bucket.client.abort_multipart_upload(
            Bucket=bucket.name, Key="x", UploadId=begun["UploadId"]
        )
        aborted.append(begun["UploadId"])

    await upload(bucket, "x", file, abort)
    assert aborted
    assert await content(bucket, "x") == data(file)


async def test_a_server_that_is_killed_loses_no_part(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "minio") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = Bucket(BucketName("models", ""))
        bucket.client.create_bucket(Bucket="models")
        counted = Counted(bucket)

        def kill(done_bytes: int) -> None:
            if done_bytes >= 3 * PART_BYTES:
                server.stop(signal.SIGKILL)

        with pytest.raises(StoreUnreachable, match=server.endpoint):
            await upload(bucket, "x", file, kill)
        server.start()
        done = 3
        again = len(counted.parts)
        await upload(bucket, "x", file)
        assert len(counted.parts) - again <= PARTS - done
        assert await content(bucket, "x") == data(file)
        await bucket.close()
