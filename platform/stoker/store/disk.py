"""What a failing disk means to a user: an `OSError` as one of the platform's errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoker.errors import StokerError, StorageFull
from stoker.store.base import StorageReadOnly, StoreUnusable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


def storage_full(path: Path) -> StorageFull:
    return StorageFull(
        f"the disk that holds {path} is full; free some space (`stoker delete` what is unused)"
        " and try again",
        details={"path": str(path)},
    )


def storage_read_only(path: Path) -> StorageReadOnly:
    return StorageReadOnly(
        f"{path} cannot be written: the disk is read-only or the permissions forbid it;"
        " choose another --home",
        details={"path": str(path)},
    )


def storage_error(path: Path, error: OSError) -> StokerError:
    """The platform's error for what the system said about `path`."""
    if error.errno in FULL:
        return storage_full(path)
    if error.errno in READ_ONLY:
        return storage_read_only(path)
    return StoreUnusable(
        f"{path} cannot be used: {error.strerror or error}", details={"path": str(path)}
    )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` raised inside into StorageFull, StorageReadOnly or StoreUnusable."""
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def sync_directory(path: Path) -> None:
    """Makes renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
