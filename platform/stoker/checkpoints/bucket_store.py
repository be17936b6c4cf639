"""The checkpoint store in a bucket.

    checkpoints/<hex digest>/<path>    the files, each an object
    checkpoints/<hex digest>.json      the record: digests, and the ETag of each object

The record is written last: without it there is nothing, and it is what `put` finds first again.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from xxhash import xxh3_128

import stoker_loader
from stoker.checkpoints.bucket import Bucket, StoredObject
from stoker.checkpoints.bucket_errors import ObjectNotFound, ObjectReplaced
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.files import is_sound_path
from stoker.checkpoints.multipart import PART_BYTES, upload
from stoker.checkpoints.staging import remove_tree
from stoker.checkpoints.store import Content, Report, Signed
from stoker.checkpoints.waiting import Turns, in_thread, some_at_once
from stoker.domain import Artifact, Digest
from stoker.errors import (
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    PayloadTooLarge,
    StokerError,
)
from stoker.store.base import StoreUnusable
from stoker.store.disk import disk_errors
from stoker_loader import FileDigest
from stoker_loader.errors import LoaderError

FOLDER = "checkpoints/"
RECORD = ".json"
VERSION = 1
MAX_RECORD_BYTES = 64 << 20  # some 16 TB of weights
SIGNED_FOR_S = 3600
ORPHAN_S = 24 * 3600.0
MAX_SMALL_AT_ONCE = 8  # files that are one request each
MAX_PUTS = 3  # tries, when others change the same objects meanwhile


@dataclass(frozen=True, slots=True)
class _Record:
    version: int
    artifact: Artifact
    digest: stoker_loader.Digest
    objects: dict[str, StoredObject]  # by path in the artifact
    corrupt: tuple[str, ...] = ()  # paths that a verify found to hold other bytes


_RECORD = TypeAdapter(_Record)
_OBJECT_KEY = re.compile(rf"{FOLDER}([0-9a-f]{{64}})/")
_RECORD_KEY = re.compile(rf"{FOLDER}([0-9a-f]{{64}})\{RECORD}")

log = logging.getLogger(__name__)


class RecordDamaged(StoreUnusable):
    """A record that is none: what it was about has to be pushed again."""

    code = "record_damaged"


class BucketStore:
    """Artifacts as objects of `bucket`, which this closes."""

    def __init__(self, bucket: Bucket, *, now: Callable[[], float] = time.time) -> None:
        self.bucket = bucket
        self._now = now
        self._turns = Turns()

    async def put(self, folder: Path, content: Content, report: Report) -> None:
        async with self._turns.of(content.artifact.digest):
            await self._put(folder, content, report)
        with disk_errors(folder):
            await in_thread(remove_tree, folder)

    async def content(self, digest: Digest) -> Content:
        record = await self._record(digest)
        return Content(record.artifact, record.digest)

    async def contents(self) -> AsyncIterator[Content]:
        async for found in self.bucket.objects(FOLDER, below=False):
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
        if record.corrupt:
            raise CheckpointInvalid(
                f"{record.corrupt[0]} was found corrupt in bucket {self.bucket.name!r}; push the"
                " checkpoint again",
                details={"reason": "found_corrupt", "file": record.corrupt[0]},
            )
        expires_at = self._now() + SIGNED_FOR_S

        def sign() -> dict[str, stoker_loader.Source]:
            return {
                path: stoker_loader.Source(
                    self.bucket.url(stored, SIGNED_FOR_S), etag=f'"{stored.etag}"'
                )
                for path, stored in record.objects.items()
            }

        sources = await self.bucket.call(_record_key(digest), sign)
        return Signed(Content(record.artifact, record.digest), sources, expires_at)

    async def is_sound(self, digest: Digest) -> bool:
        """Whether the record is there, and every object as it was when that was written."""
        try:
            record = await self._record(digest)
        except (CheckpointNotFound, RecordDamaged):
            return False
        return not record.corrupt and not await self._changed(record)

    async def verify(self, digest: Digest, report: Report) -> None:
        record = await self._record(digest)
        try:
            await self._compare(record, report)
        except CheckpointInvalid as error:
            try:
                await self._mark(record, error.details["file"])
            except CheckpointNotFound:  # deleted meanwhile
                raise
            except StokerError as failed:
                log.warning("%s could not be marked: %s", digest, failed.message)
            raise

    async def _compare(self, record: _Record, report: Report) -> None:
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
            came = 0
            async with aclosing(self._chunks(file.name, stored)) as chunks:
                async for number, found in chunks:
                    if number >= len(file.chunks) or found != file.chunks[number]:
                        raise _corrupt(file.name, number)
                    came += 1
                    done_bytes += min(CHUNK_BYTES, file.size_bytes - number * CHUNK_BYTES)
                    report(done_bytes, total_bytes)
            if came < len(file.chunks):
                raise _corrupt(file.name, came)

    async def delete(self, digest: Digest) -> None:
        async with self._turns.of(digest):
            missing: CheckpointNotFound | None = None
            try:
                await self._record(digest)
            except CheckpointNotFound as error:
                missing = error
            except RecordDamaged:
                pass  # it goes all the same
            await self.bucket.delete([_record_key(digest)])  # from here on it is not there
            left = [found.key async for found in self._objects(digest)]
            await self.bucket.delete(left)
            if missing and not left:
                raise missing

    async def recover(self) -> None:
        """Others may be at work on the same bucket: what has no record is given up when nothing was
        added to it for `ORPHAN_S`."""
        newest: dict[str, float] = {}
        keys: dict[str, list[str]] = {}
        recorded: set[str] = set()
        async for found in self.bucket.objects(FOLDER):
            if match := _RECORD_KEY.fullmatch(found.key):
                recorded.add(match[1])
            elif match := _OBJECT_KEY.match(found.key):
                keys.setdefault(match[1], []).append(found.key)
                newest[match[1]] = max(newest.get(match[1], 0.0), found.modified_at)
        for name in keys.keys() - recorded:
            if newest[name] < self._now() - ORPHAN_S:
                log.warning("%s%s/ has no record and is removed", FOLDER, name)
                await self.bucket.delete(keys[name])

    async def close(self) -> None:
        await self.bucket.close()

    def _objects(self, digest: Digest) -> AsyncIterator[StoredObject]:
        return self.bucket.objects(f"{FOLDER}{_hex(digest)}/")

    async def _put(self, folder: Path, content: Content, report: Report) -> None:
        digest = content.artifact.digest
        record: _Record | None
        try:
            record = await self._record(digest)
        except (CheckpointNotFound, RecordDamaged):
            record = None
        if record is not None:
            if not record.corrupt and not await self._changed(record):
                return
            # Objects that rotted look as they did: what is there under their ETag is not theirs.
            await self.bucket.delete([_key(digest, path) for path in record.corrupt])
        for _ in range(MAX_PUTS):
            if not await self._changed(await self._send(folder, content, report)):
                return
        raise Conflict(f"others keep changing {digest}; try again", param=digest, retry_after_s=1)

    async def _send(self, folder: Path, content: Content, report: Report) -> _Record:
        files = content.digest.files
        total_bytes = sum(file.size_bytes for file in files)
        done_bytes = 0
        objects: dict[str, StoredObject] = {}

        async def send(file: FileDigest) -> None:
            before_bytes = 0

            def sent(file_bytes: int) -> None:
                nonlocal done_bytes, before_bytes
                done_bytes += file_bytes - before_bytes
                before_bytes = file_bytes
                report(done_bytes, total_bytes)

            key = _key(content.artifact.digest, file.name)
            objects[file.name] = await upload(self.bucket, key, folder / file.name, sent)

        small = [file for file in files if file.size_bytes <= PART_BYTES]
        await some_at_once(MAX_SMALL_AT_ONCE, (partial(send, file) for file in small))
        for file in files:  # the others come in parts, several at a time
            if file.size_bytes > PART_BYTES:
                await send(file)
        record = _Record(VERSION, content.artifact, content.digest, objects)
        await self._write(record)
        return record

    async def _mark(self, record: _Record, corrupt: str) -> None:
        """Has the next `put` send a file again, though its object looks as it did."""
        digest = record.artifact.digest
        async with self._turns.of(digest):
            if await self._record(digest) == record:
                await self._write(replace(record, corrupt=(corrupt,)))

    async def _write(self, record: _Record) -> None:
        data = await in_thread(_RECORD.dump_json, record)
        if len(data) > MAX_RECORD_BYTES:
            raise PayloadTooLarge(
                f"the record of {record.artifact.digest} has {len(data)} bytes, more than"
                f" {MAX_RECORD_BYTES}: split the checkpoint"
            )
        await self.bucket.put(_record_key(record.artifact.digest), data)

    async def _changed(self, record: _Record) -> bool:
        """Whether an object of the record's is gone, or is another one than when it was written."""
        listed = {
            found.key: (found.etag, found.size_bytes)
            async for found in self._objects(record.artifact.digest)
        }
        return any(
            listed.get(stored.key) != (stored.etag, stored.size_bytes)
            for stored in record.objects.values()
        )

    async def _record(self, digest: Digest) -> _Record:
        key = _record_key(digest)
        try:
            data = await self.bucket.get(key, MAX_RECORD_BYTES)
        except ObjectNotFound:
            raise CheckpointNotFound(
                f"the files of {digest} are not in bucket {self.bucket.name!r}; push them again"
                " with `stoker push DIR NAME`",
                param=digest,
            ) from None
        except PayloadTooLarge as error:
            raise self._damaged(key) from error
        try:
            record = await in_thread(_RECORD.validate_json, data)
        except ValidationError as error:
            raise self._damaged(key) from error
        if record.version != VERSION:
            raise StoreUnusable(
                f"{key} has version {record.version}, and this stoker reads version {VERSION}"
            )
        if not await in_thread(_is_about, record, digest):
            raise self._damaged(key)
        return record

    def _damaged(self, key: str) -> RecordDamaged:
        return RecordDamaged(
            f"{key} in bucket {self.bucket.name!r} is no record of a checkpoint; push it again",
            details={"bucket": self.bucket.name, "key": key},
        )

    async def _chunks(self, path: str, stored: StoredObject) -> AsyncGenerator[tuple[int, str]]:
        """The digests of a file's chunks, as the store's bytes have them now."""
        pending = bytearray()
        number = 0
        try:
            async with aclosing(self.bucket.read(stored)) as pieces:
                async for piece in pieces:
                    pending += piece
                    while len(pending) >= CHUNK_BYTES:
                        chunk = bytes(pending[:CHUNK_BYTES])
                        del pending[:CHUNK_BYTES]
                        yield number, await in_thread(_xxh3, chunk)
                        number += 1
        except (ObjectNotFound, ObjectReplaced) as error:
            raise CheckpointInvalid(
                f"{path}: {error.message}", details={"reason": error.code, "file": path}
            ) from error
        if pending:
            yield number, _xxh3(bytes(pending))


def _xxh3(chunk: bytes) -> str:
    return xxh3_128(chunk).hexdigest()


def _hex(digest: Digest) -> str:
    return digest.removeprefix("blake3:")


def _key(digest: Digest, path: str) -> str:
    return f"{FOLDER}{_hex(digest)}/{path}"


def _is_about(record: _Record, digest: Digest) -> bool:
    """Whether a record, which anyone may have written who may write to the bucket, speaks of this
    artifact's own objects and of no others."""
    names = [file.name for file in record.digest.files]
    try:
        record.digest.check()
    except LoaderError:
        return False
    return (
        record.artifact.digest == record.digest.root == digest
        and sorted(names) == sorted(record.objects)
        and set(record.corrupt) <= set(names)
        and all(map(is_sound_path, names))
        and all(stored.key == _key(digest, path) for path, stored in record.objects.items())
    )


def _record_key(digest: Digest) -> str:
    return f"{FOLDER}{_hex(digest)}{RECORD}"


def _corrupt(path: str, chunk: int) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"{path}: chunk {chunk} is corrupt in the store; push the checkpoint again",
        details={"reason": "chunk_mismatch", "file": path, "chunk": chunk},
    )
