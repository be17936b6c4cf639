"""Where artifacts are kept for good: what a directory, a bucket and memory all promise.

Errors that only a store elsewhere has, as leaves of the tree in `stoker.errors`:

    Unavailable ── StoreUnreachable  it does not answer, or says that it cannot just now
    StokerError ── StoreRefused      trying again is no use: credentials, rights, clock
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import stoker_loader
from stoker.domain import Artifact, Digest
from stoker.errors import StokerError, Unavailable

Report = Callable[[int, int], None]  # bytes done, bytes in all; on the caller's event loop


class StoreUnreachable(Unavailable):
    code = "store_unreachable"


class StoreRefused(StokerError):
    status = 502
    code = "store_refused"


@dataclass(frozen=True, slots=True)
class Content:
    """What is known of an artifact's files: its entry in the catalog, and the digests of all."""

    artifact: Artifact
    digest: stoker_loader.Digest


@dataclass(frozen=True, slots=True)
class InPlace:
    """The files lie in a folder of this machine, with the bytes that the digest says."""

    path: Path


@dataclass(frozen=True, slots=True)
class Signed:
    """Each file (by its path in the artifact) answers ranged GETs without credentials, until then
    (Unix seconds). What comes has to be compared with `content`."""

    content: Content
    sources: dict[str, stoker_loader.Source]
    expires_at: float


Location = InPlace | Signed


class CheckpointStore(Protocol):
    """Immutable artifacts by digest, each whole or not there.

    A crash at any moment leaves nothing that `content` would give and `verify` refuse. Every method
    may raise what the store's own kind of trouble is: StorageFull, StorageReadOnly, StoreUnusable,
    StoreUnreachable, StoreRefused.
    """

    async def put(self, folder: Path, content: Content, report: Report) -> None:
        """Keeps the files of `folder`, which were digested and are on the disk; the folder is gone
        afterwards. What is there already under the digest stays if it is sound. Put again after an
        error or a crash it goes on where it ended, as far as the store can."""
        ...

    async def content(self, digest: Digest) -> Content:
        """Raises CheckpointNotFound."""
        ...

    def contents(self) -> AsyncIterator[Content]:
        """All that is there, in the order of their digests."""
        ...

    async def locate(self, digest: Digest) -> Location:
        """Where the files can be had now. Raises CheckpointNotFound, and CheckpointInvalid where
        they lie in place and are found to be others."""
        ...

    async def is_sound(self, digest: Digest) -> bool:
        """Whether all of it is there, as far as can be told without reading it once more; what is
        not is to be put again."""
        ...

    async def verify(self, digest: Digest, report: Report) -> None:
        """Reads everything again. Raises CheckpointNotFound, CheckpointInvalid (names file and
        chunk); what was found invalid is not sound until it was put again."""
        ...

    async def delete(self, digest: Digest) -> None:
        """Forgets an artifact and frees its space. Raises CheckpointNotFound."""
        ...

    async def recover(self) -> None:
        """After a start, before anything else: removes what a crash has left half-made, as far as
        nobody else can be at work on it."""
        ...

    async def close(self) -> None:
        """Ends what the store itself has started."""
        ...
