"""Our loader with one step switched off at a time, and with verification; run by `child`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.loader.loaders import Load, Tensors

from stoker_loader import Digest, FileDigest, digest

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


def whole(verify: bool) -> Load:
    """`load_file` as users call it, with the digests that were made with the checkpoint or none."""
    import torch  # noqa: F401 - imports are not timed

    import stoker_loader

    def load(path: str) -> Tensors:
        known = read_digest(Path(path)) if verify else False
        return stoker_loader.load_file(path, verify=known)

    return load


def verified_apart(first: bool) -> Load:
    """Verification as a step of its own: `first` reads and hashes and then maps what is resident,
    else all is loaded before all is hashed."""
    import torch  # noqa: F401 - imports are not timed

    import stoker_loader

    def load(path: str) -> Tensors:
        known = read_digest(Path(path))
        if first:
            stoker_loader.verify(path, known)
        tensors = stoker_loader.load_file(path)
        if not first:
            stoker_loader.verify(path, known)
        return tensors

    return load


def digest_file(path: Path) -> Path:
    """Where the digest of a checkpoint's file lies: beside its folder, which holds nothing else."""
    return path.parent.with_suffix(".digest.json")


def read_digest(path: Path) -> Digest:
    """The digest that was written when the checkpoint was made."""
    stored = json.loads(digest_file(path).read_text())
    return Digest(stored["root"], tuple(FileDigest(n, s, tuple(c)) for n, s, c in stored["files"]))


def write_digest(path: Path) -> None:
    """Digest a checkpoint's file and keep that beside it."""
    found = digest(path)
    files = [(file.name, file.size_bytes, file.chunks) for file in found.files]
    digest_file(path).write_text(json.dumps({"root": found.root, "files": files}))


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
VERIFY_OFF, VERIFY_ON = "verify_off", "verify_on"
VERIFICATION: dict[str, Callable[[], Load]] = {
    VERIFY_OFF: partial(whole, verify=False),
    VERIFY_ON: partial(whole, verify=True),
    "verify_first": partial(verified_apart, first=True),
    "verify_afterwards": partial(verified_apart, first=False),
}
MAKERS: dict[str, Callable[[], Load]] = {
    **{name: make for name, (_, make) in ABLATION.items()},
    **VERIFICATION,
}
