"""What an object store says went wrong, as members of the platform's error tree.

StokerError
├── NotFound 404
│   └── ObjectNotFound
├── Conflict 409
│   └── ObjectReplaced      other bytes under the same key than were looked at before
├── Unavailable 503
│   └── StoreUnreachable    see store.py
└── StoreRefused 502        see store.py
    └── BucketNotFound
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import urllib3.exceptions
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's, of which no builtin is a base
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)

from stoker.checkpoints.store import StoreRefused, StoreUnreachable
from stoker.errors import Conflict, NotFound, StorageFull

MISSING_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
# urllib3's own come from bodies that are read piece by piece.
NO_ANSWER = (ConnectionError, HTTPClientError, IncompleteReadError, urllib3.exceptions.HTTPError)
# Of S3 and MinIO, by what they mean to us where the status alone does not tell.
FULL = frozenset({"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"})
PASSING = frozenset(
    {
        *("RequestTimeout", "IncompleteBody", "SlowDown", "OperationAborted"),
        *("InternalError", "ServiceUnavailable"),
    }
)
OUTDATED_PARTS = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})
OUTDATED_CREDENTIALS = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws/credentials"
)


class ObjectNotFound(NotFound):
    code = "object_not_found"


class ObjectReplaced(Conflict):
    code = "object_replaced"


class BucketNotFound(StoreRefused):
    code = "bucket_not_found"


class UploadGone(Exception):
    """A multipart upload was completed, aborted or changed by somebody else."""


@contextmanager
def bucket_errors(bucket: str, endpoint: str, key: str = "") -> Iterator[None]:
    """Turns what boto3 raises inside into one of the errors above, StorageFull or UploadGone."""
    try:
        yield
    except ClientError as error:
        raise _answered(error, bucket, endpoint, key) from error
    except MISSING_CREDENTIALS as error:
        raise StoreRefused(f"no credentials for {endpoint}: {CREDENTIALS_HINT}") from error
    except NO_ANSWER as error:
        raise StoreUnreachable(
            f"the object store at {endpoint} does not answer: {error}", details={"key": key}
        ) from error
    except BotoCoreError as error:  # what boto3 found wrong before it sent anything
        raise StoreRefused(
            f"bucket {bucket!r} at {endpoint} cannot be used: {error}; see AWS_PROFILE,"
            " AWS_ENDPOINT_URL_S3 and ~/.aws/config",
            details={"key": key},
        ) from error


def _answered(error: ClientError, bucket: str, endpoint: str, key: str) -> Exception:
    """The error for an answer, by S3's error codes; a HEAD has no body, and so its status alone."""
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = error.response.get("Error", {}).get("Message") or code
    details = {"bucket": bucket, "key": key, "s3_code": code}
    match code, status:
        case "NoSuchBucket", _:
            return BucketNotFound(
                f"there is no bucket {bucket!r} at {endpoint}: make it, or name another with"
                " --store s3://BUCKET",
                details=details,
            )
        case _ if code in OUTDATED_PARTS:
            return UploadGone(said)
        case _ if code in FULL:
            return StorageFull(
                f"the object store at {endpoint} is full ({said}): free some space there, or raise"
                f" the quota of bucket {bucket!r}",
                details=details,
            )
        case _ if code in PASSING:
            return StoreUnreachable(
                f"the object store at {endpoint} cannot answer now: {said}", details=details
            )
        case "RequestTimeTooSkewed", _:
            return StoreRefused(
                f"the object store at {endpoint} refuses requests of another time than its own:"
                " set both machines' clocks",
                details=details,
            )
        case "PreconditionFailed" | "412" | "InvalidRange" | "416", _:
            return ObjectReplaced(f"{key} was replaced in bucket {bucket!r}", details=details)
        case _, 404:
            return ObjectNotFound(f"bucket {bucket!r} has no object {key!r}", details=details)
        case _, status if status in (401, 403) or code in OUTDATED_CREDENTIALS:
            return StoreRefused(
                f"the object store at {endpoint} refuses access to bucket {bucket!r} ({said}):"
                f" {CREDENTIALS_HINT} that may read and write it",
                details=details,
            )
        case _, 429 | 500 | 502 | 503 | 504:
            return StoreUnreachable(
                f"the object store at {endpoint} cannot answer now: {said}", details=details
            )
    return StoreRefused(
        f"the object store at {endpoint} refuses it: {said} ({code}, {status})", details=details
    )
