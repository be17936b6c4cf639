"""The checkpoint store in a bucket.

    checkpoints/<hex digest>/<path>    the files, each an object
    checkpoints/<hex digest>.json      the record: digests, and the ETag of each object

The record is written last: without it there is nothing, and it is what `put` finds first again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from xxhash import xxh3_128

import stoker_loader
from stoker.checkpoints.bucket import Bucket, StoredObject
from stoker.checkpoints.bucket_errors import ObjectNotFound, ObjectReplaced
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.multipart import upload
from stoker.checkpoints.staging import remove_tree
from stoker.checkpoints.store import Content, Report, Signed
from stoker.checkpoints.waiting import in_thread
from stoker.domain import Artifact, Digest
from stoker.errors import CheckpointInvalid, CheckpointNotFound
from stoker.store.base import StoreUnusable
from stoker.store.disk import disk_errors

FOLDER = "checkpoints/"
RECORD = ".json"
VERSION = 1
MAX_RECORD_BYTES = 64 << 20  # some 16 TB of weights
SIGNED_FOR_S = 3600


@dataclass(frozen=True, slots=True)
class _Record:
    version: int
    artifact: Artifact
    digest: stoker_loader.Digest
    objects: dict[str, StoredObject]  # by path in the artifact


_RECORD = TypeAdapter(_Record)
_RECORD_KEY = re.compile(rf"{FOLDER}([0-9a-f]{{64}})\{RECORD}")

log = logging.getLogger(__name__)


class RecordDamaged(StoreUnusable):
    """A record that is none: what it was about has to be pushed again."""

    code = "record_damaged"


class BucketStore:
    """Artifacts as objects of `bucket`, which this closes."""

    def __init__(self, bucket: Bucket, *, now: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._now = now

    async def put(self, folder: Path, content: Content, report: Report) -> None:
        digest = content.artifact.digest
        if not await self._is_sound(digest):
            await self._send(folder, content, report)
        with disk_errors(folder):
            await in_thread(remove_tree, folder)

    async def content(self, digest: Digest) -> Content:
        record = await self._record(digest)
        return Content(record.artifact, record.digest)

    async def contents(self) -> AsyncIterator[Content]:
        async for found in self._bucket.objects(FOLDER, below=False):
            match = _RECORD_KEY.fullmatch(found.key)
            if match is None:
                continue  # somebody else's
            try:
                yield await self.content(Digest(f"blake3:{match[1]}"))
            except CheckpointNotFound:
                continue  # deleted meanwhile
            except RecordDamaged as error:
                log.warning("%s", error.message)

    async def locate(self, digest: Digest) -> Signed:
        record = await self._record(digest)
        sources = {
            path: stoker_loader.Source(
                self._bucket.url(stored, SIGNED_FOR_S), etag=f'"{stored.etag}"'
            )
            for path, stored in record.objects.items()
        }
        content = Content(record.artifact, record.digest)
        return Signed(content, sources, expires_at=self._now() + SIGNED_FOR_S)

    async def verify(self, digest: Digest, report: Report) -> None:
        record = await self._record(digest)
        total_bytes = sum(file.size_bytes for file in record.digest.files)
        done_bytes = 0
        for file in record.digest.files:
            stored = record.objects[file.name]
            if stored.size_bytes != file.size_bytes:
                raise CheckpointInvalid(
                    f"{file.name}: {stored.size_bytes} bytes in the store, not {file.size_bytes};"
                    " push the checkpoint again",
                    details={"reason": "length_mismatch", "file": file.name},
                )
            async for number, found in self._chunks(file.name, stored):
                if found != file.chunks[number]:
                    raise _corrupt(file.name, number)
                done_bytes += min(CHUNK_BYTES, file.size_bytes - number * CHUNK_BYTES)
                report(done_bytes, total_bytes)

    async def delete(self, digest: Digest) -> None:
        record = await self._record(digest)
        await self._bucket.delete([_record_key(digest)])  # from here on it is not there
        await self._bucket.delete([stored.key for stored in record.objects.values()])

    async def recover(self) -> None:
        """Others may be at work on the same bucket: what has no record is theirs or nobody's."""

    async def close(self) -> None:
        await self._bucket.close()

    async def _send(self, folder: Path, content: Content, report: Report) -> None:
        files = content.digest.files
        total_bytes = sum(file.size_bytes for file in files)
        done_bytes = 0
        objects: dict[str, StoredObject] = {}
        for file in files:

            def sent(file_bytes: int, before_bytes: int = done_bytes) -> None:
                report(before_bytes + file_bytes, total_bytes)

            key = _key(content.artifact.digest, file.name)
            objects[file.name] = await upload(self._bucket, key, folder / file.name, sent)
            done_bytes += file.size_bytes
        record = _Record(VERSION, content.artifact, content.digest, objects)
        await self._bucket.put(_record_key(content.artifact.digest), _RECORD.dump_json(record))

    async def _is_sound(self, digest: Digest) -> bool:
        """Whether the record is there, and every object as it was when that was written."""
        try:
            record = await self._record(digest)
        except (CheckpointNotFound, RecordDamaged):
            return False
        listed = {
            found.key: found.etag
            async for found in self._bucket.objects(f"{FOLDER}{_hex(digest)}/")
        }
        return all(listed.get(stored.key) == stored.etag for stored in record.objects.values())

    async def _record(self, digest: Digest) -> _Record:
        key = _record_key(digest)
        try:
            data = await self._bucket.get(key, MAX_RECORD_BYTES)
        except ObjectNotFound:
            raise CheckpointNotFound(
                f"the files of {digest} are not in bucket {self._bucket.name!r}; push them again"
                " with `stoker push DIR NAME`",
                param=digest,
            ) from None
        try:
            record = _RECORD.validate_json(data)
        except ValidationError as error:
            raise self._damaged(key) from error
        if record.version != VERSION:
            raise StoreUnusable(
                f"{key} has version {record.version}, and this stoker reads version {VERSION}"
            )
        if not _is_about(record, digest):
            raise self._damaged(key)
        return record

    def _damaged(self, key: str) -> RecordDamaged:
        return RecordDamaged(
            f"{key} in bucket {self._bucket.name!r} is no record of a checkpoint; push it again",
            details={"bucket": self._bucket.name, "key": key},
        )

    async def _chunks(self, path: str, stored: StoredObject) -> AsyncIterator[tuple[int, str]]:
        """The digests of a file's chunks, as the store's bytes have them now."""
        pending = bytearray()
        number = 0
        try:
            async for piece in self._bucket.read(stored):
                pending += piece
                while len(pending) >= CHUNK_BYTES:
                    yield number, xxh3_128(memoryview(pending)[:CHUNK_BYTES]).hexdigest()
                    del pending[:CHUNK_BYTES]
                    number += 1
        except (ObjectNotFound, ObjectReplaced) as error:
            raise CheckpointInvalid(
                f"{path}: {error.message}", details={"reason": error.code, "file": path}
            ) from error
        if pending:
            yield number, xxh3_128(pending).hexdigest()


def _hex(digest: Digest) -> str:
    return digest.removeprefix("blake3:")


def _key(digest: Digest, path: str) -> str:
    return f"{FOLDER}{_hex(digest)}/{path}"


def _is_about(record: _Record, digest: Digest) -> bool:
    """Whether a record, which anyone may have written who may write to the bucket, speaks of this
    artifact's own objects and of no others."""
    names = [file.name for file in record.digest.files]
    return (
        record.artifact.digest == record.digest.root == digest
        and sorted(names) == sorted(record.objects)
        and all(part not in {"", ".", ".."} for name in names for part in name.split("/"))
        and all(stored.key == _key(digest, path) for path, stored in record.objects.items())
    )


def _record_key(digest: Digest) -> str:
    return f"{FOLDER}{_hex(digest)}{RECORD}"


def _corrupt(path: str, chunk: int) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"{path}: chunk {chunk} is corrupt in the store; push the checkpoint again",
        details={"reason": "chunk_mismatch", "file": path, "chunk": chunk},
    )
