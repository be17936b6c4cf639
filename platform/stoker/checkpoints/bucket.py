"""Objects of one S3 bucket, on MinIO, AWS or whatever else speaks the protocol.

Endpoint, credentials and region are found by boto3 as every tool of that world finds them: in the
environment, in ~/.aws, or from the machine's role. Its calls block, so they run in threads that the
bucket owns; a wait that is cancelled ends when its call has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import ClientError

from stoker.checkpoints.bucket_errors import bucket_errors
from stoker.checkpoints.store import StoreRefused
from stoker.checkpoints.waiting import to_the_end
from stoker.errors import BadRequest, PayloadTooLarge

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.client import S3Client

MAX_CALLS = 16  # under way at once, each with a thread and a connection
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0  # of silence
MAX_ATTEMPTS = 4
PIECE_BYTES = 1 << 20
MAX_KEYS_A_DELETE = 1000  # DeleteObjects of the S3 API

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was when it was looked at: another write gives it another `etag`."""

    key: str
    size_bytes: int
    etag: str  # without quotes
    modified_at: float  # Unix seconds
    version: str | None = None  # where the bucket keeps versions


@dataclass(frozen=True, slots=True)
class BucketName:
    """`s3://bucket/prefix`: keys are below the prefix, which is empty or ends with a slash."""

    bucket: str
    prefix: str

    @staticmethod
    def parse(uri: str) -> BucketName:
        """Raises BadRequest."""
        scheme, separator, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not separator or not bucket:
            raise BadRequest(f"{uri!r} names no bucket; expected s3://BUCKET or s3://BUCKET/FOLDER")
        return BucketName(bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else "")


class Bucket:
    """One bucket, and what can be done with its objects; `close` ends its threads."""

    def __init__(self, name: BucketName, client: S3Client | None = None) -> None:
        """A `client` that is given stays its giver's. Raises StoreRefused, StoreUnreachable when
        boto3's configuration is of no use."""
        self.name = name.bucket
        self._prefix = name.prefix
        with bucket_errors(name.bucket, "its endpoint"):
            self.client = client or connect()
        self._owns_client = client is None
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="bucket")
        self.endpoint = self.client.meta.endpoint_url

    async def check(self) -> None:
        """Whether it is there and lets us in. Raises BucketNotFound, StoreRefused,
        StoreUnreachable."""
        # HeadBucket answers without a body: 404 and 403 tell no more than that.
        await self.call("", partial(self.client.list_objects_v2, Bucket=self.name, MaxKeys=1))

    async def objects(self, prefix: str, *, below: bool = True) -> AsyncGenerator[StoredObject]:
        """All objects whose keys begin so, in the order of their keys; with `below=False` without
        those that have a further slash in theirs."""
        asked: dict[str, Any] = {"Bucket": self.name, "Prefix": self._prefix + prefix}
        if not below:
            asked["Delimiter"] = "/"
        while True:
            page = await self.call(prefix, partial(self.client.list_objects_v2, **asked))
            for found in page.get("Contents", ()):
                yield StoredObject(
                    key=found["Key"].removeprefix(self._prefix),
                    size_bytes=found["Size"],
                    etag=found["ETag"].strip('"'),
                    modified_at=found["LastModified"].timestamp(),
                )
            if not page["IsTruncated"]:
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    async def find(self, key: str) -> StoredObject:
        """The object as it is now. Raises ObjectNotFound."""
        found = await self.call(
            key, partial(self.client.head_object, Bucket=self.name, Key=self.full(key))
        )
        return StoredObject(
            key=key,
            size_bytes=found["ContentLength"],
            etag=found["ETag"].strip('"'),
            modified_at=found["LastModified"].timestamp(),
            version=found.get("VersionId"),
        )

    async def get(self, key: str, max_bytes: int, etag: str | None = None) -> bytes:
        """A small object whole, only as it was when it had an `etag` that is given. Raises
        ObjectNotFound, ObjectReplaced, PayloadTooLarge."""
        only: dict[str, Any] = {"IfMatch": f'"{etag}"'} if etag is not None else {}

        def work() -> bytes:
            answer = self.client.get_object(Bucket=self.name, Key=self.full(key), **only)
            with closing(answer["Body"]) as body:
                size_bytes = answer["ContentLength"]
                if size_bytes > max_bytes:
                    raise PayloadTooLarge(f"{key} has {size_bytes} bytes, more than {max_bytes}")
                return body.read()

        return await self.call(key, work)

    async def read(
        self, stored: StoredObject, begin: int = 0, size_bytes: int | None = None
    ) -> AsyncGenerator[bytes]:
        """The bytes of an object that was looked at, from `begin` on; to be closed by who does not
        read them to the end. Raises ObjectNotFound, ObjectReplaced."""
        end = stored.size_bytes if size_bytes is None else begin + size_bytes
        if begin >= end:
            return
        opened: list[StreamingBody] = []

        def get() -> StreamingBody:
            answer = self.client.get_object(
                Bucket=self.name,
                Key=self.full(stored.key),
                Range=f"bytes={begin}-{end - 1}",
                IfMatch=f'"{stored.etag}"',
            )
            opened.append(answer["Body"])
            return answer["Body"]

        try:
            body = await self.call(stored.key, get)
            while piece := await self.call(stored.key, partial(body.read, PIECE_BYTES)):
                yield piece
        finally:
            for each in opened:  # also by a call whose wait was cancelled
                each.close()

    async def put(self, key: str, data: bytes) -> None:
        """Makes or replaces a small object."""
        await self.call(
            key, partial(self.client.put_object, Bucket=self.name, Key=self.full(key), Body=data)
        )

    async def delete(self, keys: Iterable[str]) -> None:
        """Removes objects; absent ones are fine. Raises StoreRefused, StoreUnreachable if one of
        them stays."""
        left = [self.full(key) for key in keys]
        while left:
            batch, left = left[:MAX_KEYS_A_DELETE], left[MAX_KEYS_A_DELETE:]
            await self.call(batch[0], self._delete, batch)

    def _delete(self, keys: list[str]) -> None:
        answer = self.client.delete_objects(
            Bucket=self.name, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
        for stays in answer.get("Errors", ()):  # within an answer that is none itself
            said = f"{stays.get('Key')} stays: {stays.get('Message') or stays.get('Code')}"
            raise ClientError(
                {"Error": {"Code": stays.get("Code", ""), "Message": said}}, "DeleteObjects"
            )

    def url(self, stored: StoredObject, expires_s: int) -> str:
        """Where an object can be read without credentials until `expires_s` from now. It belongs
        in one of the bucket's threads: credentials that expire are asked for again."""
        version = {"VersionId": stored.version} if stored.version else {}
        return self.client.generate_presigned_url(
            "get_object",
            Params={"Bucket": self.name, "Key": self.full(stored.key), **version},
            ExpiresIn=expires_s,
        )

    def full(self, key: str) -> str:
        """The key in the bucket, below this bucket's folder."""
        return self._prefix + key

    def key_of(self, full: str) -> str | None:
        """The key below this bucket's folder of one in the bucket; None for what is not there."""
        return full.removeprefix(self._prefix) if full.startswith(self._prefix) else None

    async def call(self, key: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a call of boto3's, or work made of them, in one of the bucket's threads."""
        with bucket_errors(self.name, self.endpoint, key):
            loop = asyncio.get_running_loop()
            return await to_the_end(
                loop.run_in_executor(self._threads, partial(work, *args, **kwargs))
            )

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        if self._owns_client:
            self.client.close()


def connect() -> S3Client:
    """A client by boto3's own configuration as it is now, bounded as above."""
    session = Session()  # the module's own would keep the first credentials that it found
    try:
        client: S3Client = session.client("s3", config=_config("auto"))
    except ValueError as error:  # an endpoint without a scheme
        raise StoreRefused(f"{error}; set AWS_ENDPOINT_URL_S3 like http://127.0.0.1:9000") from None
    if client.meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return client
    # A store elsewhere answers under one name for all of its buckets.
    client.close()
    return session.client("s3", config=_config("path"))


def _config(addressing: Literal["auto", "path"]) -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        max_pool_connections=MAX_CALLS,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        s3={"addressing_style": addressing},
        signature_version="s3v4",
        # Signatures cover every byte already, and our digests do so again.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
