"""Folders that people upload to the bucket become checkpoints, without any other command.

    look (who lists) -> judge (model_folder.py) -> bring its files -> ingest -> store and catalog

Events only say where to look: they may be lost, late, doubled or in any order. What is true is
what a listing says, at the start, every `LIST_EVERY_S`, and `QUIET_S` after the last event of a
folder. One folder's trouble is its own: it is noted with the folder, and others go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

from stoker.checkpoints.agenda import Agenda
from stoker.checkpoints.bucket import Bucket, StoredObject
from stoker.checkpoints.bucket_errors import ObjectNotFound, ObjectReplaced
from stoker.checkpoints.faults import checkpoint_error
from stoker.checkpoints.import_files import place, stage, sweep
from stoker.checkpoints.import_notes import Notes
from stoker.checkpoints.import_state import (
    FolderChanged,
    Import,
    ImportState,
    NotImported,
    why_not,
)
from stoker.checkpoints.model_folder import (
    MAX_READ_BYTES,
    MODELS,
    ModelFolder,
    folders_of,
    judge,
    place_of,
    to_read,
)
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.staging import remove_tree
from stoker.checkpoints.store import StoreUnreachable
from stoker.checkpoints.waiting import in_thread, some_at_once
from stoker.domain import Digest
from stoker.errors import (
    BadRequest,
    CheckpointInvalid,
    CheckpointNotFound,
    PayloadTooLarge,
    StokerError,
    StorageFull,
    Unavailable,
)
from stoker.store.disk import disk_errors
from stoker_loader import Source, aio
from stoker_loader.errors import (
    DestinationExistsError,
    FetchError,
    LengthMismatchError,
    LoaderError,
    RangeRefusedError,
    SourceChangedError,
    SourceMissingError,
)

QUIET_S = 0.5  # a console uploads one file after the other
LIST_EVERY_S = 60.0
MAX_FILES_AT_ONCE = 8
SMALL_BYTES = 1 << 20  # up to here one request is the fastest way
MAX_IMPORTS_AT_ONCE = 2
SIGNED_FOR_S = 3600

# What a store answers when its object is no longer the one that was listed.
OTHER_OBJECT = (LengthMismatchError, RangeRefusedError, SourceChangedError, SourceMissingError)

log = logging.getLogger(__name__)


class Imports:
    """The folders below `models/` of `bucket`, and what `registry` makes of them; files on their
    way lie below `root`."""

    def __init__(
        self,
        bucket: Bucket,
        registry: Registry,
        root: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._notes = Notes(bucket)
        self._registry = registry
        self._root = root
        self._clock = clock
        self._agenda = Agenda()
        self._found: dict[str, Import] = {}
        self._unlisted: StokerError | None = Unavailable(
            "the bucket's folders were not looked at yet; try again", retry_after_s=1
        )
        self._importing: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(MAX_IMPORTS_AT_ONCE)
        self._news = asyncio.Event()
        self._manifests: dict[str, StoredObject] = {}

    def changed(self, key: str) -> None:
        """Something happened to an object of the bucket: its folder is looked at when all is
        quiet."""
        below = self._bucket.key_of(key)
        if place := place_of(below) if below else None:
            self._agenda.put(place[0], self._clock() + QUIET_S)

    def imports(self) -> tuple[Import, ...]:
        """All folders, by name."""
        return tuple(self._found[name] for name in sorted(self._found))

    def manifest(self, name: str) -> StoredObject | None:
        """The function.yaml of a folder, if it has one."""
        return self._manifests.get(name)

    async def read_manifest(self, stored: StoredObject, max_bytes: int) -> bytes:
        """Raises PayloadTooLarge, FolderChanged when it is another one by now."""
        try:
            return await self._bucket.get(stored.key, max_bytes, stored.etag)
        except (ObjectNotFound, ObjectReplaced) as error:
            raise FolderChanged(f"{stored.key} was changed") from error

    def knows(self, name: str) -> bool:
        """Whether the bucket has a folder of this name."""
        return name in self._found

    def require(self, name: str) -> Digest:
        """The checkpoint that a folder became. Raises NotImported, which says what is missing, and
        Unavailable or StoreUnreachable where nobody could look."""
        found = self._found.get(name)
        if found is None and self._unlisted is not None:
            raise self._unlisted
        if found is not None and found.digest is not None:
            return found.digest
        raise NotImported(why_not(name, found), param=f"s3://models/{name}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something about the folders is so."""
        while not condition():
            await self.news()

    async def news(self) -> None:
        """Waits until something about a folder changes."""
        self._news.clear()
        await self._news.wait()

    async def run(self) -> None:
        """Looks at all folders, and at each again after its events, until cancelled."""
        listed_at = self._clock()
        try:
            await self.look_at_all()
            while True:
                if (now := self._clock()) >= listed_at + LIST_EVERY_S:
                    await self.look_at_all()
                    listed_at = self._clock()
                for name in self._agenda.due(now):
                    await self._begin(name)
                wake_at = min(listed_at + LIST_EVERY_S, self._agenda.next_at())
                self._agenda.changed.clear()
                try:
                    async with asyncio.timeout(max(wake_at - self._clock(), 0.0)):
                        await self._agenda.changed.wait()
                except TimeoutError:
                    continue
        finally:
            await self._stop(*self._importing)

    async def look(self, name: str) -> None:
        """Looks at one folder, and imports it if it is complete."""
        await self._begin(name)
        if (task := self._importing.get(name)) is not None:
            await asyncio.wait([task])

    async def look_at_all(self) -> None:
        """Looks at every folder, and begins to import what is complete."""
        try:
            found = await self._list(MODELS)
        except StokerError as error:
            log.warning("the folders of the bucket cannot be listed: %s", error.message)
            self._unlisted = error
            return
        self._unlisted = None
        for name in self._found.keys() - found.keys():
            await self._guarded(name, partial(self._forget, name))
        await self._guarded("", partial(in_thread, sweep, self._root, frozenset(found)))
        for folder in found.values():
            await self._guarded(folder.name, partial(self._take, folder, recheck=True))

    # --- one folder -----------------------------------------------------------------------------

    async def _begin(self, name: str) -> None:
        async def look() -> None:
            folder = (await self._list(f"{MODELS}{name}/")).get(name)
            await (self._take(folder) if folder else self._forget(name))

        await self._guarded(name, look)

    async def _guarded(self, name: str, work: Callable[[], object]) -> None:
        """Does something about a folder, whose trouble stays its own."""
        try:
            await work()  # type: ignore[misc]  # each is a coroutine function
        except StokerError as error:
            log.warning("%s%s: %s", MODELS, name, error.message)
            self._fail(name, error)
        except Exception as error:  # what somebody uploaded must not end the platform
            log.exception("%s%s", MODELS, name)
            self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        known = self._found.get(name)
        if not name:
            return
        # Bad content stays bad until it changes; all else may pass.
        lasting = isinstance(error, CheckpointInvalid | BadRequest)
        self._know(
            Import(
                name,
                known.fingerprint if known else "",
                ImportState.REFUSED if lasting else ImportState.FAILED,
                reason=error.message if isinstance(error, StokerError) else repr(error),
                digest=known.digest if known else None,
            )
        )

    async def _list(self, prefix: str) -> dict[str, ModelFolder]:
        async with aclosing(self._bucket.objects(prefix)) as listed:
            return folders_of([stored async for stored in listed])

    async def _forget(self, name: str) -> None:
        """The folder is gone; a checkpoint that was made of it stays."""
        await self._stop(name)
        self._manifests.pop(name, None)
        if self._found.pop(name, None) is not None:
            self._news.set()
        with disk_errors(self._root):
            await in_thread(remove_tree, self._root / name)

    async def _take(self, folder: ModelFolder, *, recheck: bool = False) -> None:
        """Brings what is known of a folder up to date, and begins to import what is complete."""
        name, fingerprint = folder.name, folder.fingerprint
        known = self._found.get(name)
        if known is not None and known.fingerprint == fingerprint:
            self._describe(folder)
            if name in self._importing or known.state in (
                ImportState.REFUSED,
                ImportState.INCOMPLETE,
            ):
                return
            if known.state is ImportState.IMPORTED and not recheck:
                return
        await self._stop(name)
        self._manifests.pop(name, None)  # until it is known what the model is
        made, of_this = await self._noted(folder)
        digest = made or (known.digest if known else None)
        if made and of_this:
            self._know(Import(name, fingerprint, ImportState.IMPORTED, digest=made))
            self._describe(folder)
            return
        verdict = judge(folder, await self._read(folder))
        if verdict.refused:
            log.warning("%s%s is refused: %s", MODELS, name, verdict.refused)
            state = Import(name, fingerprint, ImportState.REFUSED, reason=verdict.refused)
        elif verdict.lacking:
            state = Import(name, fingerprint, ImportState.INCOMPLETE, lacking=verdict.lacking)
        else:
            total_bytes = sum(folder.objects[path].size_bytes for path in verdict.wanted)
            state = Import(name, fingerprint, ImportState.IMPORTING, total_bytes=total_bytes)
            work = partial(self._import, folder, verdict.wanted)
            self._importing[name] = task = asyncio.create_task(
                self._guarded(name, work), name=f"import {name}"
            )
            task.add_done_callback(lambda _: self._importing.pop(name, None))
        self._know(replace(state, digest=digest))
        self._describe(folder)

    def _describe(self, folder: ModelFolder) -> None:
        """Keeps the function.yaml of a state of a folder that is known."""
        if folder.manifest is None:
            self._manifests.pop(folder.name, None)
        elif self._manifests.get(folder.name) != folder.manifest:
            self._manifests[folder.name] = folder.manifest
            self._news.set()

    async def _stop(self, *names: str) -> None:
        """Ends imports that are under way; what has come stays."""
        tasks = [self._importing[name] for name in names if name in self._importing]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _know(self, state: Import) -> None:
        self._found[state.name] = state
        self._news.set()

    async def _read(self, folder: ModelFolder) -> dict[str, object]:
        """The JSON of the files that say what belongs to a folder; None for what is none."""
        read: dict[str, object] = {}
        for path in to_read(folder):
            try:
                data = await self._bucket.get(folder.objects[path].key, MAX_READ_BYTES[path])
                read[path] = await in_thread(json.loads, data)
            except (ValueError, RecursionError, PayloadTooLarge):
                read[path] = None
        return read

    # --- importing ------------------------------------------------------------------------------

    async def _import(self, folder: ModelFolder, wanted: tuple[str, ...]) -> None:
        name = folder.name
        async with self._turns:
            staged = self._root / name / folder.fingerprint
            try:
                await self._bring(folder, wanted, staged / "files")
                now = (await self._list(f"{MODELS}{name}/")).get(name)
                if now is None or now.fingerprint != folder.fingerprint:
                    self._agenda.put(name, self._clock() + QUIET_S)
                    raise FolderChanged(f"models/{name} was changed while it was imported")
                artifact = await self._registry.make(staged, name, lambda *_: None)
            except (StorageFull, CheckpointInvalid, BadRequest):
                with disk_errors(staged):
                    await in_thread(remove_tree, self._root / name)
                raise
        log.info("%s%s is checkpoint %s", MODELS, name, artifact.digest)
        self._know(Import(name, folder.fingerprint, ImportState.IMPORTED, digest=artifact.digest))
        await self._notes.write(name, folder.fingerprint, artifact.digest)

    async def _bring(self, folder: ModelFolder, wanted: tuple[str, ...], files: Path) -> None:
        sizes = {path: folder.objects[path].size_bytes for path in wanted}
        await in_thread(stage, files, sizes)
        state = self._found[folder.name]
        done_bytes = 0

        async def bring(path: str) -> None:
            file_bytes = 0

            def report(now_bytes: int, _total_bytes: int) -> None:
                nonlocal done_bytes, file_bytes
                done_bytes += now_bytes - file_bytes
                file_bytes = now_bytes
                self._know(replace(state, done_bytes=done_bytes))

            await self._fetch(folder.objects[path], files / path, report)
            report(sizes[path], sizes[path])

        await some_at_once(MAX_FILES_AT_ONCE, (partial(bring, path) for path in wanted))

    async def _fetch(
        self, stored: StoredObject, target: Path, report: Callable[[int, int], None]
    ) -> None:
        """Brings the file as its object was when it was listed, unless it has come before."""
        if not stored.size_bytes:  # of which no range can be asked for
            with disk_errors(target):
                await in_thread(target.touch)
            return
        try:
            if stored.size_bytes <= SMALL_BYTES:
                data = await self._bucket.get(stored.key, SMALL_BYTES, stored.etag)
                await in_thread(place, target, data)
                return
            url = await self._bucket.call(stored.key, self._bucket.url, stored, SIGNED_FOR_S)
            await aio.fetch(Source(url, etag=f'"{stored.etag}"'), target, progress=report)
        except DestinationExistsError:  # by an import of the same state that was cut off
            return
        except (ObjectNotFound, ObjectReplaced, *OTHER_OBJECT) as error:
            raise FolderChanged(f"{stored.key} was changed while it was imported") from error
        except FetchError as error:
            raise StoreUnreachable(f"{stored.key} does not come: {error.message}") from error
        except LoaderError as error:
            raise checkpoint_error(error, target.parent) from error

    async def _noted(self, folder: ModelFolder) -> tuple[Digest | None, bool]:
        """The checkpoint that was made of the folder, if it is still there, and whether that was
        of this state of it."""
        note = await self._notes.read(folder.name)
        if note is None:
            return None, False
        try:
            artifact = await self._registry.resolve(note.digest)
        except CheckpointNotFound:
            return None, False
        return artifact.digest, note.fingerprint == folder.fingerprint
