"""The page cache as a tier: what of a path it holds, filling it, emptying it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from stoker_loader import _native

Progress = Callable[[int, int], object]
"""Called with `(bytes done, bytes in all)`; what it raises stops the work and is raised."""


@dataclass(frozen=True, slots=True)
class Residency:
    """How many bytes of the files under a path the page cache holds."""

    checkpoint_bytes: int
    resident_bytes: int


def residency(path: str | os.PathLike[str]) -> Residency:
    """Ask the kernel about a file, or every file under a directory; no byte is read.

    Linux answers by `cachestat` since 6.5 and by `mincore` before.
    Raises CheckpointNotFoundError, ResidencyHiddenError, StorageError.
    """
    return Residency(*_native.residency(path))


def evict(path: str | os.PathLike[str]) -> Residency:
    """Drop the pages of a file, or of every file under a directory, and tell what is left.

    Dirty pages are written first. Pages that a process has mapped or pinned stay, and so do
    those of a tmpfs. Raises CheckpointNotFoundError, ResidencyHiddenError, StorageError.
    """
    _native.evict(path)
    return residency(path)


def prefetch(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
    threads: int | None = None,
) -> int:
    """Bring a file, or every file under a directory, into the page cache; return the bytes.

    Raises CheckpointNotFoundError, FileChangedError, StorageError.
    """
    return _native.prefetch(path, progress, threads)
