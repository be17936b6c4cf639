"""A file into a bucket: in parts, several at a time, going on where an earlier upload of it ended.

The store keeps the parts of an upload that was not completed (MinIO for 24 hours), and their
digests say whether they are this file's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stoker.checkpoints.bucket import Bucket, StoredObject
from stoker.checkpoints.bucket_errors import ObjectNotFound, UploadGone
from stoker.checkpoints.waiting import some_at_once
from stoker.errors import Conflict
from stoker.store.disk import disk_errors

PART_BYTES = 16 << 20
MAX_PARTS = 10_000  # of one object, by the S3 API
MAX_PARTS_AT_ONCE = 4
MAX_UPLOADS = 3  # tries, when others end the upload of the same object meanwhile


@dataclass(frozen=True, slots=True)
class _Part:
    """A part as the store has it: its ETag is the MD5 of its bytes."""

    etag: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Upload:
    """A multipart upload under way; every method belongs in one of the bucket's threads."""

    bucket: Bucket
    key: str
    id: str
    there: dict[int, _Part]

    @staticmethod
    def resume_or_begin(bucket: Bucket, key: str) -> _Upload:
        client, name = bucket.client, bucket.name
        listed = client.list_multipart_uploads(Bucket=name, Prefix=key).get("Uploads", [])
        begun = [upload for upload in listed if upload["Key"] == key]
        if not begun:
            made = client.create_multipart_upload(Bucket=name, Key=key)
            return _Upload(bucket, key, made["UploadId"], {})
        newest = max(begun, key=lambda upload: upload["Initiated"])["UploadId"]
        pages = client.get_paginator("list_parts").paginate(Bucket=name, Key=key, UploadId=newest)
        there = {
            part["PartNumber"]: _Part(part["ETag"].strip('"'), part["Size"])
            for page in pages
            for part in page.get("Parts", [])
        }
        return _Upload(bucket, key, newest, there)

    def send(self, number: int, data: bytes) -> str:
        """Sends a part unless it is there; its ETag."""
        there = self.there.get(number)
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest() if there else ""
        if there == _Part(digest, len(data)):
            return digest
        sent = self.bucket.client.upload_part(
            Bucket=self.bucket.name, Key=self.key, UploadId=self.id, PartNumber=number, Body=data
        )
        return sent["ETag"]

    def complete(self, etags: dict[int, str]) -> None:
        self.bucket.client.complete_multipart_upload(
            Bucket=self.bucket.name,
            Key=self.key,
            UploadId=self.id,
            MultipartUpload={
                "Parts": [{"PartNumber": n, "ETag": etag} for n, etag in sorted(etags.items())]
            },
        )


async def upload(
    bucket: Bucket, key: str, file: Path, report: Callable[[int], None] = lambda _: None
) -> StoredObject:
    """Makes or replaces an object by a file that nobody writes to; `report` gets the bytes done.

    Whole or not there: until the last part has come the key has what it had before. Raises
    StoreUnreachable, StoreRefused, StorageFull, Conflict; a later call sends what is missing, and
    nothing where the object is there already.
    """
    size_bytes = await bucket.call(key, _size_bytes, file)
    for _ in range(MAX_UPLOADS):
        there = await _same(bucket, key, file, size_bytes)
        if there is not None:
            report(size_bytes)
            return there
        if size_bytes <= PART_BYTES:
            await bucket.put(key, await bucket.call(key, _read, file, 0, size_bytes))
            report(size_bytes)
            return await bucket.find(key)
        try:
            under_way = await bucket.call(key, _Upload.resume_or_begin, bucket, bucket.full(key))
            etags = await _send(bucket, under_way, file, size_bytes, report)
            await bucket.call(key, under_way.complete, etags)
        except UploadGone:
            continue  # by another upload of the same file, it may be, or by the store's own clock
        return await bucket.find(key)
    raise Conflict(f"others keep writing {key!r}; try again", param=key, retry_after_s=1)


async def _send(
    bucket: Bucket, under_way: _Upload, file: Path, size_bytes: int, report: Callable[[int], None]
) -> dict[int, str]:
    """Sends the parts that are missing; the ETags of all."""
    etags: dict[int, str] = {}
    done_bytes = 0

    def send(number: int, begin: int, length: int) -> str:
        return under_way.send(number, _read(file, begin, length))

    async def work(number: int, begin: int) -> None:
        nonlocal done_bytes
        length = min(_part_bytes(size_bytes), size_bytes - begin)
        etags[number] = await bucket.call(under_way.key, send, number, begin, length)
        done_bytes += length
        report(done_bytes)

    parts = enumerate(_begins(size_bytes), start=1)
    await some_at_once(MAX_PARTS_AT_ONCE, (partial(work, *part) for part in parts))
    return etags


async def _same(bucket: Bucket, key: str, file: Path, size_bytes: int) -> StoredObject | None:
    """The object, if one is there that an upload of this file would make."""
    try:
        there = await bucket.find(key)
    except ObjectNotFound:
        return None
    if there.size_bytes != size_bytes:
        return None
    expected = await bucket.call(key, _etag, file, size_bytes)
    return there if there.etag == expected else None


def _etag(file: Path, size_bytes: int) -> str:
    """What S3 makes of a file: MD5 of its bytes, or of the MD5s of its parts and their number."""
    parts = [
        hashlib.md5(
            _read(file, begin, min(_part_bytes(size_bytes), size_bytes - begin)),
            usedforsecurity=False,
        )
        for begin in _begins(size_bytes)
    ]
    if size_bytes <= PART_BYTES:
        return parts[0].hexdigest()
    joined = b"".join(part.digest() for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _part_bytes(size_bytes: int) -> int:
    return max(PART_BYTES, -(-size_bytes // MAX_PARTS))


def _begins(size_bytes: int) -> range:
    """Where parts begin; an empty file is one part."""
    return range(0, max(size_bytes, 1), _part_bytes(size_bytes))


def _size_bytes(file: Path) -> int:
    with disk_errors(file):
        return file.stat().st_size


def _read(file: Path, begin: int, size_bytes: int) -> bytes:
    with disk_errors(file):
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(descriptor, size_bytes, begin)
        finally:
            os.close(descriptor)
    assert len(data) == size_bytes, f"{file} became shorter while it was sent"
    return data
