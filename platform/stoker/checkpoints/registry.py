"""Checkpoints and handlers' sources from a client's first offer to verified bytes in the store.

    begin -> write (each file) -> commit        see staging.py, receiving.py, ingest.py, store.py

An artifact exists when it is in the store; the catalog follows, after a crash by `recover`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stoker.checkpoints.files import FileSpec, Kind, check_files, check_name, source_digest
from stoker.checkpoints.ingest import Ingested, StageProgress, Stop, ingest
from stoker.checkpoints.receiving import receive
from stoker.checkpoints.staging import Staging, Upload, remove_tree
from stoker.checkpoints.store import CheckpointStore, Content
from stoker.checkpoints.waiting import Turns, in_thread, to_the_end
from stoker.domain import Artifact, Digest
from stoker.errors import (
    BadRequest,
    CheckpointInvalid,
    CheckpointNotFound,
    Conflict,
    StokerError,
    StorageFull,
)
from stoker.store.catalog import Catalog
from stoker.store.disk import disk_errors

MAX_INGESTS = 1  # layouts at a time: one already saturates the disk
MAX_WRITES = 8  # files received at a time

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start found: uploads given up, artifacts that the catalog lacked, and artifacts of
    the catalog that are not in the store."""

    removed_uploads: tuple[str, ...]
    adopted: tuple[Digest, ...]
    missing: tuple[Digest, ...]


class Registry:
    """Uploads on their way through `home/staging` into `store`, and what the catalog says of it."""

    def __init__(
        self,
        home: Path,
        catalog: Catalog,
        store: CheckpointStore,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self._catalog = catalog
        self._now = now
        self._staging = Staging(home / "staging", now=now)
        self.turns = Turns()  # of who puts an artifact or removes it
        self._committing: set[str] = set()
        self._ingests = asyncio.Semaphore(MAX_INGESTS)
        self._writes = asyncio.Semaphore(MAX_WRITES)

    # --- uploads ----------------------------------------------------------------------------

    async def begin(
        self, files: Iterable[FileSpec], kind: Kind, name: str | None = None
    ) -> Artifact | Upload:
        """The artifact that was made from exactly these files (then under `name` too), or an
        upload that says which of them are still missing.

        Raises BadRequest, PayloadTooLarge, StorageFull, StorageReadOnly.
        """
        _check_name(kind, name)
        checked = check_files(kind, files)
        known = await self._catalog.artifact_of_source(source_digest(kind, checked))
        if known is not None and await self.store.is_sound(known.digest):
            if name is None or name == known.name:
                return known
            return await self._catalog.put_artifact(replace(known, name=name))
        return await in_thread(self._staging.begin, kind, checked)

    async def write(self, upload_id: str, path: str, stream: AsyncIterator[bytes]) -> None:
        """Receives one of the files that an upload is missing.

        Raises UploadNotFound, BadRequest (not offered, too long, too short), CheckpointInvalid
        (other bytes than offered), StorageFull (the whole upload is given up, to free its space),
        and what the stream raises (then only this file has to be sent again).
        """
        upload = await in_thread(self._staging.load, upload_id)
        file = upload.file(path)
        async with self._writes, self._giving_up(upload_id, on=(StorageFull,)):
            part = self._staging.new_part(upload)
            await receive(file, stream, part)
            await in_thread(self._staging.accept, upload, file, part)

    async def commit(self, upload_id: str, name: str | None, progress: StageProgress) -> Artifact:
        """Makes an artifact of a complete upload. `progress` is called on this event loop.

        When cancelled the upload stays, and can be committed later. Raises UploadNotFound,
        BadRequest (files are missing, name), Conflict (is being committed), CheckpointInvalid and
        StorageFull of this disk (the upload is given up), and what the store raises (it stays).
        """
        upload = await self.committable(upload_id, name)
        self._committing.add(upload_id)
        try:
            async with (
                self._ingests,
                self._giving_up(upload_id, on=(CheckpointInvalid, StorageFull)),
            ):
                folder = self._staging.folder(upload.id)
                ingested = await self._ingest(upload.kind, folder, progress)
            return await self._stored(ingested, name, upload.source_digest, folder, progress)
        finally:
            self._committing.discard(upload_id)

    async def make(self, folder: Path, name: str, progress: StageProgress) -> Artifact:
        """Makes a checkpoint of the files in `folder/files`; the folder is gone afterwards.

        When cancelled, or when it fails, the folder stays. Raises CheckpointInvalid, StorageFull,
        and what the store raises.
        """
        _check_name(Kind.CHECKPOINT, name)
        async with self._ingests:
            ingested = await self._ingest(Kind.CHECKPOINT, folder, progress)
        return await self._stored(ingested, name, None, folder, progress)

    async def committable(self, upload_id: str, name: str | None) -> Upload:
        """The upload, if `commit` may begin with it now. Raises what `commit` raises at once."""
        upload = await in_thread(self._staging.load, upload_id)
        _check_name(upload.kind, name)
        if upload_id in self._committing:
            raise Conflict(f"upload {upload_id} is being committed already", retry_after_s=1)
        if upload.missing:
            raise BadRequest(
                f"{len(upload.missing)} files were not uploaded yet, the first is"
                f" {upload.missing[0]!r}",
                details={"missing": list(upload.missing)},
            )
        return upload

    async def discard(self, upload_id: str) -> None:
        """Forgets an upload. Raises UploadNotFound, Conflict (is being committed)."""
        await in_thread(self._staging.load, upload_id)
        if upload_id in self._committing:
            raise Conflict(f"upload {upload_id} is being committed", retry_after_s=1)
        await in_thread(self._staging.discard, upload_id)

    # --- artifacts --------------------------------------------------------------------------

    async def resolve(self, uri: str) -> Artifact:
        """The artifact that `store://NAME`, `store://NAME@DIGEST`, `blake3:...` or a bare name
        stands for. Raises CheckpointNotFound."""
        return await self._catalog.artifact(uri.removeprefix("store://"))

    async def checkpoints(self) -> tuple[Artifact, ...]:
        """What was pushed under a name, oldest first."""
        artifacts = await self._catalog.artifacts()
        return tuple(artifact for artifact in artifacts if artifact.name is not None)

    # --- after a start ----------------------------------------------------------------------

    async def recover(self) -> Recovery:
        """Gives up stale uploads, then reconciles; to be called before anything else.

        Raises what the store raises when something cannot be read or removed.
        """
        removed = await in_thread(self._staging.sweep)
        await self._catalog.undoom()
        return replace(await self.reconcile(), removed_uploads=removed)

    async def reconcile(self) -> Recovery:
        """Makes the catalog agree with the store. Raises what the store raises."""
        await self.store.recover()
        known = {artifact.digest for artifact in await self._catalog.artifacts()}
        present = [content.artifact async for content in self.store.contents()]
        adopted = [
            artifact.digest
            for artifact in sorted(present, key=lambda artifact: artifact.created_at)
            if artifact.digest not in known and await self._adopt(artifact)
        ]
        missing = tuple(sorted(known - {artifact.digest for artifact in present}))
        for digest in missing:
            log.warning("the files of %s are gone; push them again", digest)
        return Recovery((), tuple(adopted), missing)

    async def _adopt(self, artifact: Artifact) -> bool:
        """Takes what is in the store into the catalog, unless it has gone from there since; under
        its name unless that stands for something newer."""
        async with self.turns.of(artifact.digest):
            try:
                await self.store.content(artifact.digest)
            except CheckpointNotFound:
                return False
            if artifact.name is not None:
                try:
                    holder = await self._catalog.artifact(artifact.name)
                except CheckpointNotFound:
                    holder = artifact
                if holder.created_at > artifact.created_at:
                    artifact = replace(artifact, name=None)
            await self._catalog.put_artifact(artifact)
        return True

    # --- parts of a commit ------------------------------------------------------------------

    async def _ingest(self, kind: Kind, folder: Path, progress: StageProgress) -> Ingested:
        loop = asyncio.get_running_loop()
        stop = Stop()

        def report(stage: str, done_bytes: int, total_bytes: int) -> None:
            loop.call_soon_threadsafe(progress, stage, done_bytes, total_bytes)

        work = asyncio.to_thread(ingest, kind, folder, report, stop)
        return await to_the_end(work, on_cancel=stop.ask)

    async def _stored(
        self,
        ingested: Ingested,
        name: str | None,
        source_digest: Digest | None,
        folder: Path,
        progress: StageProgress,
    ) -> Artifact:
        """Puts what was made of `folder` into the store and the catalog; the folder goes."""
        stop = Stop()

        def report(done_bytes: int, total_bytes: int) -> None:
            if done_bytes < total_bytes:  # all of it there: to stop would help nobody
                stop.check()
            progress("storing", done_bytes, total_bytes)

        async def publish() -> Artifact:
            artifact = Artifact(
                digest=Digest(ingested.digest.root),
                size_bytes=ingested.size_bytes,
                name=name,
                source_digest=source_digest,
                created_at=self._now(),
            )
            await self.store.put(ingested.folder, Content(artifact, ingested.digest), report)
            artifact = await self._catalog.put_artifact(artifact)
            with disk_errors(folder):
                await in_thread(remove_tree, folder)
            return artifact

        async with self.turns.of(Digest(ingested.digest.root)):
            return await to_the_end(publish(), on_cancel=stop.ask)

    @asynccontextmanager
    async def _giving_up(
        self, upload_id: str, *, on: tuple[type[StokerError], ...]
    ) -> AsyncIterator[None]:
        """Frees what an upload holds when the disk is full, or when it cannot succeed any more."""
        try:
            yield
        except on:
            await in_thread(self._staging.discard, upload_id)
            raise


def _check_name(kind: Kind, name: str | None) -> None:
    if name is None:
        return
    if kind is Kind.SOURCE:
        raise BadRequest("a function's sources have no name", param="name")
    check_name(name)
