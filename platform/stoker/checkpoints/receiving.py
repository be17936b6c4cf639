"""A file from a client's stream to the disk: bounded, digested on its way, and synced."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

from blake3 import blake3

from stoker.checkpoints.files import FileSpec
from stoker.checkpoints.staging import upload_not_found
from stoker.checkpoints.waiting import in_thread
from stoker.errors import BadRequest, CheckpointInvalid
from stoker.store.disk import disk_errors

WRITE_BYTES = 4 << 20  # gathered before a thread is bothered


async def receive(file: FileSpec, stream: AsyncIterator[bytes], part: Path) -> None:
    """Writes `stream` to the new file `part`, which is complete and on the disk afterwards.

    Raises BadRequest (longer or shorter than offered), CheckpointInvalid (other bytes than
    offered), UploadNotFound, StorageFull, StorageReadOnly, and what the stream raises; then no
    part remains.
    """
    writer = _PartWriter(part)
    complete = False
    try:
        await in_thread(writer.open)
        pending = bytearray()
        received_bytes = 0
        async for piece in stream:
            received_bytes += len(piece)
            if received_bytes > file.size_bytes:
                raise BadRequest(
                    f"{file.path} is longer than the {file.size_bytes} bytes that were offered"
                )
            pending += piece
            if len(pending) >= WRITE_BYTES:
                await in_thread(writer.write, pending)
                pending = bytearray()
        await in_thread(writer.write, pending)
        if received_bytes < file.size_bytes:
            raise BadRequest(
                f"{file.path} ended after {received_bytes} of {file.size_bytes} bytes; send it"
                " again"
            )
        found = await in_thread(writer.finish)
        if found != file.blake3:
            raise CheckpointInvalid(
                f"{file.path} arrived with other bytes than were offered (BLAKE3 {found}, offered"
                f" {file.blake3}); send it again",
                details={"file": file.path, "expected": file.blake3, "found": found},
            )
        complete = True
    finally:
        await in_thread(writer.close, keep=complete)


class _PartWriter:
    """One part under way; every method belongs in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hasher = blake3()
        self._descriptor: int | None = None

    def open(self) -> None:
        with disk_errors(self._path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                self._descriptor = os.open(self._path, flags, 0o600)
            except FileNotFoundError:  # its upload was discarded meanwhile
                raise upload_not_found(self._path.parent.parent.name) from None

    def write(self, piece: bytearray) -> None:
        assert self._descriptor is not None
        self._hasher.update(piece)
        with disk_errors(self._path), memoryview(piece) as left:
            written = 0
            while written < len(piece):
                written += os.write(self._descriptor, left[written:])

    def finish(self) -> str:
        """Syncs the part; gives BLAKE3 of all that was written."""
        assert self._descriptor is not None
        with disk_errors(self._path):
            os.fsync(self._descriptor)
        return self._hasher.hexdigest()

    def close(self, *, keep: bool) -> None:
        if self._descriptor is None:
            return
        os.close(self._descriptor)
        if not keep:
            self._path.unlink(missing_ok=True)
