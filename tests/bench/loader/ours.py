"""Our loader with one step switched off at a time, and with verification; run by `child`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.loader.loaders import Load, Tensors

SMALL_PIECE_BYTES = 128 << 10  # what the kernel itself reads ahead


def steps(
    threads: int | None = None,
    piece_bytes: int | None = None,
    huge_pages: bool = True,
    populate: bool = True,
) -> Load:
    """`Checkpoint.load` taken apart, each step as asked for; the defaults are those of `load`."""
    import torch  # noqa: F401 - imports are not timed

    import stoker_loader

    def load(path: str) -> Tensors:
        with stoker_loader.open(path) as checkpoint:
            native = checkpoint._native
            assert native is not None
            native.map(huge_pages)
            if populate and piece_bytes is None:
                native.populate(None, threads)
            elif populate:
                native.populate(None, threads, piece_bytes)
            return {name: checkpoint.tensor(name) for name in checkpoint.names}

    return load


def read_by(source: str) -> Load:
    """`Checkpoint.load` by another way of reading than mapped pages of the page cache."""
    import torch  # noqa: F401 - imports are not timed

    import stoker_loader

    def load(path: str) -> Tensors:
        with stoker_loader.open(path) as checkpoint:
            return checkpoint.load(source=source)  # type: ignore[arg-type]

    return load


def verified(first: bool) -> Load:
    """Verification against the digest that was made with the checkpoint: `first` reads and hashes
    chunk by chunk and then maps what is resident; else all is read before all is hashed."""
    import torch  # noqa: F401 - imports are not timed

    import stoker_loader

    def load(path: str) -> Tensors:
        root = root_file(Path(path)).read_text()
        if first:
            stoker_loader.verify(path, root)
        with stoker_loader.open(path) as checkpoint:
            tensors = checkpoint.load()
        if not first:
            stoker_loader.verify(path, root)
        return tensors

    return load


def root_file(path: Path) -> Path:
    """Where the digest of a checkpoint's file lies: beside its folder, which holds nothing else."""
    return path.parent.with_suffix(".root")


ABLATION: dict[str, tuple[str, Callable[[], Load]]] = {
    "all_steps": ("nothing", steps),
    "no_bulk": (
        f"bulk: pieces of {SMALL_PIECE_BYTES >> 10} KiB instead of 8 MiB",
        partial(steps, piece_bytes=SMALL_PIECE_BYTES),
    ),
    "no_threads": ("threads: one instead of several", partial(steps, threads=1)),
    "no_huge_folios": (
        "huge folios: `MADV_NOHUGEPAGE` instead of `MADV_HUGEPAGE`",
        partial(steps, huge_pages=False),
    ),
    "no_populate": (
        "populate: pages come when they are touched",
        partial(steps, populate=False),
    ),
    "no_folios_no_populate": (
        "huge folios and populate: a plain mapping",
        partial(steps, huge_pages=False, populate=False),
    ),
    "no_page_cache": (
        "page cache: `O_DIRECT` by io_uring (where it is allowed) into memory of the process",
        partial(read_by, "direct"),
    ),
    "no_page_cache_no_ring": (
        "page cache and io_uring: `O_DIRECT` by threads of `pread` into memory of the process",
        partial(read_by, "direct_pread"),
    ),
    "no_mapping": (
        "mapping: threads of `pread` copy from the page cache into memory of the process",
        partial(read_by, "pread"),
    ),
}
VERIFICATION: dict[str, Callable[[], Load]] = {
    "verify_in_pipeline": partial(verified, first=True),
    "verify_afterwards": partial(verified, first=False),
}
MAKERS: dict[str, Callable[[], Load]] = {
    **{name: make for name, (_, make) in ABLATION.items()},
    **VERIFICATION,
}
