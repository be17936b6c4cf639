"""The functions on paths and sources, each as its namesake in `stoker_loader`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from stoker_loader import alignment, converting, fetching, identity, opening, page_cache, pinning
from stoker_loader.aio.threads import in_thread
from stoker_loader.alignment import LayoutReport
from stoker_loader.converting import ConvertDtype, ConvertProgress, ConvertReport
from stoker_loader.fetching import Fetched, FetchLimits, Source
from stoker_loader.identity import Digest, FileDigest
from stoker_loader.opening import PATIENCE_S
from stoker_loader.page_cache import Progress, Residency
from stoker_loader.pinning import Pin


async def residency(path: str | os.PathLike[str]) -> Residency:
    """Ask the kernel what the page cache holds; takes milliseconds, and is not stopped."""
    return await in_thread(lambda _: page_cache.residency(path))


async def evict(path: str | os.PathLike[str]) -> Residency:
    """Drop pages, dirty ones after writing them: the kernel's work, which is not stopped."""
    return await in_thread(lambda _: page_cache.evict(path))


async def prefetch(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
    threads: int | None = None,
) -> int:
    """Bring files into the page cache; return the bytes."""
    return await in_thread(lambda watch: page_cache.prefetch(path, watch, threads), progress)


async def pin(
    path: str | os.PathLike[str],
    progress: Progress | None = None,
    threads: int | None = None,
) -> Pin:
    """Bring files into the page cache and keep them there; cancelled, nothing stays pinned."""
    return await in_thread(
        lambda watch: pinning.pin(path, watch, threads), progress, discard=pinning.unpin
    )


async def digest(path: str | os.PathLike[str], progress: Progress | None = None) -> Digest:
    """Digest a file or a directory."""
    return await in_thread(lambda watch: identity.digest(path, watch), progress)


async def verify(
    path: str | os.PathLike[str], expected: Digest | str, progress: Progress | None = None
) -> None:
    """Return only if the bytes at `path` are those that `expected` is of."""
    await in_thread(lambda watch: identity.verify(path, expected, watch), progress)


async def layout(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    progress: Progress | None = None,
) -> LayoutReport:
    """Write an aligned checkpoint; cancelled before it is done, nothing remains of it."""
    return await in_thread(lambda watch: alignment.layout(source, destination, watch), progress)


async def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    dtype: ConvertDtype | None = None,
    progress: ConvertProgress | None = None,
) -> ConvertReport:
    """Write a checkpoint of another format as aligned safetensors."""
    return await in_thread(
        lambda watch: converting.convert(source, destination, dtype=dtype, progress=watch),
        progress,
    )


async def fetch(
    sources: str | Source | Sequence[str | Source],
    destination: str | os.PathLike[str],
    *,
    expected: FileDigest | None = None,
    limits: FetchLimits | None = None,
    progress: Progress | None = None,
) -> Fetched:
    """Fetch one file; cancelled, it leaves what has come, and the next fetch goes on from there."""
    return await in_thread(
        lambda watch: fetching.fetch(
            sources, destination, expected=expected, limits=limits, progress=watch
        ),
        progress,
    )


async def wait_complete(
    path: str | os.PathLike[str],
    *,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
) -> None:
    """Return when every safetensors file of a checkpoint on its way stands complete."""
    await in_thread(
        lambda watch: opening.wait_complete(path, patience_s=patience_s, progress=watch), progress
    )
