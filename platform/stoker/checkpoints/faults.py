"""What the loader says went wrong, as a member of the platform's error tree."""

from __future__ import annotations

from pathlib import Path

from stoker.errors import CheckpointInvalid, StokerError
from stoker.store.disk import storage_error
from stoker_loader.errors import ChunkMismatchError, LoaderError, StorageError

CHUNK_BYTES = 8 << 20  # of the loader's digests


def checkpoint_error(error: LoaderError, root: Path) -> StokerError:
    """StorageFull, StorageReadOnly or StoreUnusable for a failed system call; for all else
    CheckpointInvalid, with paths as they are below `root`."""
    if isinstance(error, StorageError) and error.errno is not None:
        return storage_error(root, OSError(error.errno, error.message))
    file = _within(root, error.file)
    details: dict[str, object] = {
        "reason": error.code,
        "file": file,
        "tensor": error.tensor,
        "offset": error.offset,
    }
    if isinstance(error, ChunkMismatchError) and error.offset is not None:
        details["chunk"] = error.offset // CHUNK_BYTES
    message = error.message.replace(f"{root}/", "").replace(str(root), "the checkpoint")
    return CheckpointInvalid(message, details=details)


def _within(root: Path, file: str | None) -> str | None:
    """A file's path below `root`; None for the root itself and for what lies elsewhere."""
    if file is None or not file.startswith(f"{root}/"):
        return None
    return file.removeprefix(f"{root}/")
