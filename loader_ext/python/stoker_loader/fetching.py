"""A file from elsewhere: ranged GETs from one or several sources, verified, resumable, atomic."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from stoker_loader import _native
from stoker_loader.identity import FileDigest, files_to_native
from stoker_loader.page_cache import Progress

MAX_STREAMS = 64


@dataclass(frozen=True, slots=True)
class Source:
    """A URL that answers ranged GETs, and the object's entity tag where it is known.

    The URL may be signed: it is no part of the value's `repr`, and errors show it without query.
    """

    url: str = field(repr=False)
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How hard to try: connections to each source, the longest silence of one, when a chunk is
    asked for a second time, and how often one is asked for in all."""

    streams: int = 8
    stall_s: float = 15.0
    hedge_after_s: float = 3.0
    attempts: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.streams <= MAX_STREAMS:
            raise ValueError(f"streams: between 1 and {MAX_STREAMS}, not {self.streams}")
        if self.stall_s <= 0 or self.hedge_after_s <= 0 or self.attempts < 1:
            raise ValueError("stall_s, hedge_after_s and attempts must be above 0")


@dataclass(frozen=True, slots=True)
class FetchStats:
    """Where the bytes came from, and the seconds of each stage."""

    resumed_bytes: int
    bytes_by_source: tuple[int, ...]
    resume_s: float
    fetch_s: float
    sync_s: float


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched: its digest, and how it came."""

    digest: FileDigest
    stats: FetchStats


def fetch(
    sources: str | Source | Sequence[str | Source],
    destination: str | os.PathLike[str],
    *,
    expected: FileDigest | None = None,
    limits: FetchLimits | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch one file, the same from all `sources`, to `destination`, which must not exist.

    It grows as `DESTINATION.part` and appears, complete and synced, by a rename. A fetch that ends
    early leaves what has arrived; the next one verifies that and goes on. With `expected` (such as
    `sidecar_digest` of a sidecar that came before) each chunk is compared before it counts, and a
    source that sends others is dropped; without it, all ranges must be of the one object that the
    first source describes.

    Raises DestinationExistsError, FetchBusyError, ChunkMismatchError, DigestInvalidError,
    the SourceErrors, StorageError, ValueError.
    """
    listed = [sources] if isinstance(sources, str | Source) else list(sources)
    origins = [Source(one) if isinstance(one, str) else one for one in listed]
    bounds = limits or FetchLimits()
    native, resumed_bytes, by_source, seconds = _native.fetch(
        [(one.url, one.etag) for one in origins],
        destination,
        files_to_native([expected])[0] if expected else None,
        (
            bounds.streams,
            timedelta(seconds=bounds.stall_s),
            timedelta(seconds=bounds.hedge_after_s),
            bounds.attempts,
        ),
        progress,
    )
    name, size_bytes, chunks = native
    stats = FetchStats(resumed_bytes, tuple(by_source), *seconds)
    return Fetched(FileDigest(name, size_bytes, tuple(chunks)), stats)
