"""The disk's own rate, and what the page cache holds of a checkpoint."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import stoker_loader

READERS = 8
BLOCK_BYTES = 8 << 20


def checkpoint_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


class DiskRate:
    """Reads files past the page cache, `readers` at once. The buffers are allocated and touched
    once, ahead: on a virtual machine the first touch may cost more than the disk."""

    def __init__(self, readers: int = READERS, block_bytes: int = BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._buffers = [mmap.mmap(-1, block_bytes) for _ in range(readers)]
        for buffer in self._buffers:
            buffer.write(b"\1" * block_bytes)

    def bytes_per_s(self, files: Iterable[Path]) -> float:
        """The rate of one pass over `files` with O_DIRECT."""
        blocks = [
            (path, begin)
            for path in files
            for begin in range(0, path.stat().st_size, self._block_bytes)
        ]
        readers = len(self._buffers)
        shares = [blocks[reader::readers] for reader in range(readers)]
        with ThreadPoolExecutor(readers) as pool:
            began = time.perf_counter()
            total_bytes = sum(pool.map(_read, self._buffers, shares))
            return total_bytes / (time.perf_counter() - began)


def _read(buffer: mmap.mmap, blocks: list[tuple[Path, int]]) -> int:
    total_bytes = 0
    for path, begin in blocks:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            total_bytes += os.preadv(fd, [buffer], begin)
        finally:
            os.close(fd)
    return total_bytes


def recycle_and_evict(folder: Path) -> None:
    """Reads the files once and drops their pages, so that the pages which the next read takes
    are ones that this machine had a moment ago."""
    for path in checkpoint_files(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass
    stoker_loader.evict(folder)


def resident_share(folder: Path) -> float:
    """How much of the files is in the page cache, from 0 to 1."""
    residency = stoker_loader.residency(folder)
    return float(residency.resident_bytes / residency.checkpoint_bytes)
