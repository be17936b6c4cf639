"""The checkpoint store of one machine: folders on its disk, used in place; or in its memory."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import stoker_loader
from stoker.checkpoints.faults import checkpoint_error
from stoker.checkpoints.ingest import Stop
from stoker.checkpoints.shelf import Shelf
from stoker.checkpoints.store import Content, InPlace, Report
from stoker.checkpoints.waiting import Turns, in_thread, to_the_end
from stoker.domain import Digest
from stoker.errors import CheckpointInvalid, CheckpointNotFound, StokerError
from stoker_loader.errors import LoaderError

log = logging.getLogger(__name__)

MAX_VERIFIES = 2  # full reads at a time: one already saturates the disk
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


class DirectoryStore:
    """Artifacts as folders below `root`, see `shelf`."""

    def __init__(self, root: Path) -> None:
        self._shelf = Shelf(root)
        self._turns = Turns()
        self._verifies = asyncio.Semaphore(MAX_VERIFIES)

    def path(self, digest: Digest) -> Path:
        """Where an artifact's folder is, if it is there at all."""
        return self._shelf.path(digest)

    async def put(self, folder: Path, content: Content, report: Report) -> None:
        async with self._turns.of(content.artifact.digest):
            await in_thread(self._shelf.place, folder, content.artifact, content.digest)
        report(content.artifact.size_bytes, content.artifact.size_bytes)

    async def content(self, digest: Digest) -> Content:
        record = await in_thread(self._shelf.record, digest)
        return Content(record.artifact, record.digest)

    async def contents(self) -> AsyncIterator[Content]:
        for record in await in_thread(self._shelf.records):
            yield Content(record.artifact, record.digest)

    async def locate(self, digest: Digest) -> InPlace:
        """Milliseconds while the files look untouched, a full read when they do not."""
        if await in_thread(self._shelf.unchanged, digest):
            return InPlace(self._shelf.path(digest))
        async with self._verifies:
            return InPlace(await in_thread(self._shelf.verify, digest))

    async def is_sound(self, digest: Digest) -> bool:
        """As `locate` finds."""
        try:
            await self.locate(digest)
        except (CheckpointInvalid, CheckpointNotFound):
            return False
        return True

    async def verify(self, digest: Digest, report: Report) -> None:
        content = await self.content(digest)
        path = self._shelf.path(digest)
        loop = asyncio.get_running_loop()
        stop = Stop()

        def progress(done_bytes: int, total_bytes: int) -> None:
            stop.check()
            loop.call_soon_threadsafe(report, done_bytes, total_bytes)

        async with self._verifies:
            try:
                await to_the_end(
                    asyncio.to_thread(stoker_loader.verify, path, content.digest, progress),
                    on_cancel=stop.ask,
                )
            except LoaderError as error:
                found = checkpoint_error(error, path)
                if isinstance(found, CheckpointInvalid):
                    await self._distrust(digest)
                raise found from error

    async def delete(self, digest: Digest) -> None:
        async with self._turns.of(digest):
            await in_thread(self._shelf.remove, digest)

    async def _distrust(self, digest: Digest) -> None:
        try:
            async with self._turns.of(digest):
                await in_thread(self._shelf.distrust, digest)
        except CheckpointNotFound:  # deleted meanwhile
            raise
        except StokerError as error:
            log.warning("%s could not be marked: %s", digest, error.message)

    async def recover(self) -> None:
        await in_thread(self._shelf.sweep)

    async def close(self) -> None:
        """Nothing of it runs."""


@contextmanager
def in_memory() -> Iterator[tuple[Path, DirectoryStore]]:
    """A store that is gone at the end, and its folder in memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="stoker-") as root:
        yield Path(root), DirectoryStore(Path(root))
