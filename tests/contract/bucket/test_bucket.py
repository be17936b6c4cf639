"""What a bucket promises, on a real MinIO server."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import botocore.auth
import httpx
import pytest

from stoker.checkpoints.bucket import PIECE_BYTES, Bucket, BucketName
from stoker.checkpoints.bucket_errors import BucketNotFound, ObjectNotFound, ObjectReplaced
from stoker.checkpoints.store import StoreRefused, StoreUnreachable
from stoker.errors import BadRequest, PayloadTooLarge
from support.minio import Minio, running


def answer(method: str, url: str, **headers: str) -> httpx.Response:
    """What a client without credentials gets."""
    return httpx.request(method, url, headers=headers, content=b"mine" if method == "PUT" else None)


KEYS = ["a/one", "a/two words", "a/Ümläut-模型", "a/+&=?#%41", "b"]


async def test_an_object_is_what_was_put(bucket: Bucket) -> None:
    for key in KEYS:
        await bucket.put(key, key.encode())
    for key in KEYS:
        assert await bucket.get(key, 100) == key.encode()
    await bucket.put("b", b"other")
    assert await bucket.get("b", 100) == b"other"


async def test_objects_are_listed_in_order_of_their_keys(bucket: Bucket) -> None:
    assert [found async for found in bucket.objects("")] == []
    for key in KEYS:
        await bucket.put(key, b"12345")
    listed = [found async for found in bucket.objects("a/")]
    assert [found.key for found in listed] == sorted(KEYS[:4], key=str.encode)
    assert {found.size_bytes for found in listed} == {5}
    assert (await bucket.find("a/one")).etag == listed[1].etag
    assert [found.key async for found in bucket.objects("", below=False)] == ["b"]


async def test_a_listing_has_all_its_pages(bucket: Bucket) -> None:
    keys = [f"k/{number:04d}{'/x' if number % 2 else ''}" for number in range(1100)]
    await asyncio.gather(*(bucket.put(key, b"") for key in keys))
    assert [found.key async for found in bucket.objects("k/")] == keys
    assert [found.key async for found in bucket.objects("k/", below=False)] == keys[::2]
    await bucket.delete(keys)
    assert [found async for found in bucket.objects("")] == []


async def test_a_folder_of_a_bucket_is_a_bucket(bucket: Bucket) -> None:
    below = Bucket(BucketName.parse(f"s3://{bucket.name}/team/one/"), bucket.client)
    await below.put("x", b"1")
    await bucket.put("y", b"2")
    assert [found.key async for found in below.objects("")] == ["x"]
    assert await bucket.get("team/one/x", 10) == b"1"
    assert (await below.find("x")).key == "x"
    assert answer("GET", below.url(await below.find("x"), 60)).content == b"1"
    await below.delete(["x", "never there"])
    assert [found.key async for found in bucket.objects("")] == ["y"]


async def test_any_range_can_be_read(bucket: Bucket) -> None:
    data = bytes(range(256)) * (PIECE_BYTES // 100)
    await bucket.put("x", data)
    stored = await bucket.find("x")
    for begin, size_bytes in ((0, None), (5, 1), (PIECE_BYTES - 1, 2), (7, 0), (len(data), None)):
        end = len(data) if size_bytes is None else begin + size_bytes
        pieces = [piece async for piece in bucket.read(stored, begin, size_bytes)]
        assert b"".join(pieces) == data[begin:end]
        assert all(len(piece) <= PIECE_BYTES for piece in pieces)


async def test_an_object_that_was_replaced_is_not_read_as_the_old_one(bucket: Bucket) -> None:
    await bucket.put("x", b"old")
    stored = await bucket.find("x")
    await bucket.put("x", b"new")
    with pytest.raises(ObjectReplaced, match="x was replaced"):
        await anext(bucket.read(stored))


async def test_a_small_object_can_be_had_as_it_was_or_not_at_all(bucket: Bucket) -> None:
    await bucket.put("x", b"old")
    etag = (await bucket.find("x")).etag
    assert await bucket.get("x", 10, etag) == b"old"
    await bucket.put("x", b"new")
    with pytest.raises(ObjectReplaced):
        await bucket.get("x", 10, etag)


async def test_an_absent_object_is_named(bucket: Bucket) -> None:
    for reading in (bucket.find("no/such"), bucket.get("no/such", 10)):
        with pytest.raises(ObjectNotFound, match="'no/such'"):
            await reading


async def test_a_large_object_is_not_taken_for_a_small_one(bucket: Bucket) -> None:
    await bucket.put("x", bytes(101))
    with pytest.raises(PayloadTooLarge, match="101 bytes, more than 100"):
        await bucket.get("x", 100)


async def test_whoever_has_the_url_needs_no_credentials(bucket: Bucket) -> None:
    await bucket.put("ä b", b"0123456789")
    stored = await bucket.find("ä b")
    url = bucket.url(stored, 60)
    part = answer("GET", url, **{"Range": "bytes=2-4", "If-Match": f'"{stored.etag}"'})
    assert (part.status_code, part.content) == (206, b"234")
    assert answer("GET", url.partition("?")[0]).status_code == 403
    assert answer("PUT", url).status_code == 403


async def test_what_an_operator_must_mend_is_named(
    minio: Minio, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bucket.check()
    absent = Bucket(BucketName("never-made", ""), bucket.client)
    with pytest.raises(BucketNotFound, match=r"no bucket 'never-made'.*--store s3://BUCKET"):
        await absent.check()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreRefused, match="AWS_ACCESS_KEY_ID") as refused:
        await Bucket(BucketName(bucket.name, "")).check()
    assert "wrong" not in str(refused.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreRefused, match="no credentials for http"):
        await Bucket(BucketName(bucket.name, "")).check()


async def test_a_store_that_is_down_is_unreachable_until_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = Bucket(BucketName("models", ""))
        bucket.client.create_bucket(Bucket="models")
        await bucket.put("x", b"kept")
        server.stop()
        with pytest.raises(StoreUnreachable, match=server.endpoint):
            await bucket.find("x")
        server.start()
        assert await bucket.get("x", 10) == b"kept"
        await bucket.close()


@pytest.mark.parametrize("uri", ["", "s3://", "s3:///x", "gs://b", "b", "https://h/b"])
def test_what_is_no_bucket_is_refused(uri: str) -> None:
    with pytest.raises(BadRequest, match="expected s3://BUCKET"):
        BucketName.parse(uri)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_wrong_is_named(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """By what the server says of a request that was signed at another time."""
    now = botocore.auth.get_current_datetime
    monkeypatch.setattr(
        botocore.auth, "get_current_datetime", lambda: now() + timedelta(hours=hours)
    )
    with pytest.raises(StoreRefused, match="set both machines' clocks"):
        await bucket.get("x", 1)
    with pytest.raises(StoreRefused):
        await bucket.check()
