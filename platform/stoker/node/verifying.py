"""Reads a node's copy again, from its first byte to its last."""

from __future__ import annotations

import errno

from stoker.checkpoints.faults import checkpoint_error
from stoker.checkpoints.store import Report
from stoker.checkpoints.waiting import in_thread
from stoker.domain import Digest
from stoker.errors import CheckpointInvalid
from stoker.node.copies import Copies
from stoker_loader import aio
from stoker_loader.errors import LoaderError, StorageError


async def verified(folders: Copies, digest: Digest, report: Report) -> None:
    """Returns only if every byte is what was compared when it came. Raises CheckpointInvalid, which
    names the file and the chunk."""
    expected = await in_thread(folders.content, digest)
    if expected is None:
        raise CheckpointInvalid(
            f"the record of this node's copy of {digest} is gone; the copy is compared with the"
            " store's when it is needed next",
            param=digest,
        )
    path = folders.path(digest)
    try:
        await aio.verify(path, expected, report)
    except LoaderError as error:
        if isinstance(error, StorageError) and error.errno == errno.EIO:
            raise CheckpointInvalid(
                f"the disk cannot read {digest} any more: {error.message}",
                param=digest,
                details={"reason": error.code, "file": error.file, "offset": error.offset},
            ) from error
        raise checkpoint_error(error, path) from error
