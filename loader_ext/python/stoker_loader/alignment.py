"""Rewrites a checkpoint so that fused weights are one view and large tensors lie on pages."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stoker_loader import _native
from stoker_loader.identity import Digest, digest_from_native
from stoker_loader.page_cache import Progress


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """What a layout wrote.

    `digest` is exactly `digest(destination)`, `checkpoint_bytes` counts all files there,
    `fused_groups` names the tensors of each group that is one view now, and `skipped` the source's
    files that were left out: pickles, other weights, hidden files.
    """

    digest: Digest
    checkpoint_bytes: int
    tensors: int
    fused_groups: tuple[tuple[str, ...], ...]
    skipped: tuple[str, ...]


def layout(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    progress: Progress | None = None,
) -> LayoutReport:
    """Write the checkpoint at `source` (file or directory) to a new directory, aligned.

    Shards are merged into one `model.safetensors` that every safetensors reader accepts. The
    destination appears whole or not at all. Raises DestinationExistsError, PickleRefusedError,
    FileChangedError, StorageError, and what opening the source raises.
    """
    native, checkpoint_bytes, tensors, groups, skipped = _native.layout(
        source, destination, progress
    )
    return LayoutReport(
        digest=digest_from_native(native),
        checkpoint_bytes=checkpoint_bytes,
        tensors=tensors,
        fused_groups=tuple(tuple(group) for group in groups),
        skipped=tuple(skipped),
    )
