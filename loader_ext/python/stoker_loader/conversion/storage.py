"""Failed system calls of a conversion as members of the error tree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoker_loader.errors import StorageError


@contextmanager
def storage_errors(file: Path) -> Iterator[None]:
    """Makes a failed system call a StorageError about the file that it names, or else `file`."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else str(file)
        raise StorageError(
            f"{name}: converting failed: {error.strerror}", file=name, errno=error.errno
        ) from error
