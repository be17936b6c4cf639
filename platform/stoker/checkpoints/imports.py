"""Folders that people upload to the bucket become checkpoints, without any other command.

    look (who lists) -> judge (model_folder.py) -> bring its files -> ingest -> store and catalog

Events only say where to look: they may be lost, late, doubled or in any order. What is true is
what a listing says, at the start, every `LIST_EVERY_S`, and `QUIET_S` after the last event of a
folder. Which state of a folder became which checkpoint is an object of the bucket:

    imports/<name>.json
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from stoker.checkpoints.bucket import Bucket, StoredObject
from stoker.checkpoints.bucket_errors import ObjectNotFound
from stoker.checkpoints.faults import checkpoint_error
from stoker.checkpoints.model_folder import (
    MODELS,
    ModelFolder,
    Verdict,
    folders_of,
    judge,
    place_of,
    to_read,
)
from stoker.checkpoints.registry import Registry
from stoker.checkpoints.staging import remove_tree
from stoker.checkpoints.waiting import in_thread, some_at_once
from stoker.domain import Digest
from stoker.errors import CheckpointNotFound, PayloadTooLarge, StokerError
from stoker.store.disk import disk_errors
from stoker_loader import FileDigest, Source, aio
from stoker_loader.errors import DestinationExistsError, LoaderError

IMPORTS = "imports/"
QUIET_S = 0.25  # a console uploads one file after the other
LIST_EVERY_S = 60.0
MAX_JSON_BYTES = 64 << 20  # of an index of a hundred thousand tensors
MAX_NOTE_BYTES = 1 << 16
MAX_FILES_AT_ONCE = 8
SIGNED_FOR_S = 3600

log = logging.getLogger(__name__)


class ImportState(StrEnum):
    """What has become of a folder."""

    INCOMPLETE = "incomplete"
    REFUSED = "refused"
    IMPORTING = "importing"
    IMPORTED = "imported"
    FAILED = "failed"  # and is tried again with the next look


@dataclass(frozen=True, slots=True)
class Import:
    """A folder as it was found last."""

    name: str
    fingerprint: str
    state: ImportState
    lacking: tuple[str, ...] = ()
    reason: str | None = None
    digest: Digest | None = None
    done_bytes: int = 0
    total_bytes: int = 0


class NotImported(CheckpointNotFound):
    """A folder of the bucket that is no checkpoint, or not yet."""

    code = "checkpoint_not_imported"


@dataclass(frozen=True, slots=True)
class _Note:
    """Of which state of a folder a checkpoint was made."""

    version: int
    fingerprint: str
    digest: Digest


_NOTE = TypeAdapter(_Note)
_NOTE_VERSION = 1


@dataclass(slots=True)
class _Agenda:
    """Which folders are to be looked at, and when at the earliest."""

    at: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, name: str, at: float) -> None:
        self.at[name] = at
        self.changed.set()

    def due(self, now: float) -> list[str]:
        """Those whose time has come, which leave the agenda."""
        names = [name for name, at in self.at.items() if at <= now]
        for name in names:
            del self.at[name]
        return names

    def next_at(self) -> float | None:
        return min(self.at.values(), default=None)


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
        self._registry = registry
        self._root = root
        self._clock = clock
        self._agenda = _Agenda()
        self._found: dict[str, Import] = {}
        self._news = asyncio.Event()

    def changed(self, key: str) -> None:
        """Something happened to an object of the bucket: its folder is looked at when all is
        quiet."""
        below = self._bucket.key_of(key)
        if place := place_of(below) if below else None:
            self._agenda.put(place[0], self._clock() + QUIET_S)

    def imports(self) -> tuple[Import, ...]:
        """All folders, by name."""
        return tuple(self._found[name] for name in sorted(self._found))

    def knows(self, name: str) -> bool:
        """Whether the bucket has a folder of this name."""
        return name in self._found

    def require(self, name: str) -> Digest:
        """The checkpoint that a folder became. Raises NotImported, which says what is missing."""
        found = self._found.get(name)
        if found is not None and found.digest is not None:
            return found.digest
        raise NotImported(_why_not(name, found), param=f"s3://models/{name}")

    async def run(self) -> None:
        """Looks at all folders, and at each again after its events, until cancelled."""
        listed_at = self._clock()
        await self._look_at_all()
        while True:
            now = self._clock()
            if now >= listed_at + LIST_EVERY_S:
                listed_at = now
                await self._look_at_all()
            for name in self._agenda.due(now):
                await self.look(name)
            wake_at = min(listed_at + LIST_EVERY_S, self._agenda.next_at() or float("inf"))
            self._agenda.changed.clear()
            try:
                async with asyncio.timeout(max(wake_at - self._clock(), 0.0)):
                    await self._agenda.changed.wait()
            except TimeoutError:
                continue

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until something about the folders is so."""
        while not condition():
            await self.news()

    async def news(self) -> None:
        """Waits until something about a folder changes."""
        self._news.clear()
        await self._news.wait()

    # --- looking --------------------------------------------------------------------------------

    async def _look_at_all(self) -> None:
        try:
            async with aclosing(self._bucket.objects(MODELS)) as listed:
                found = folders_of([stored async for stored in listed])
        except StokerError as error:
            log.warning("the folders of the bucket cannot be listed: %s", error.message)
            return
        for name in self._found.keys() - found.keys():
            await self._forget(name)
        for folder in found.values():
            await self._take(folder)

    async def look(self, name: str) -> None:
        """Looks at one folder, and imports it if it is complete."""
        try:
            async with aclosing(self._bucket.objects(f"{MODELS}{name}/")) as listed:
                found = folders_of([stored async for stored in listed])
        except StokerError as error:
            log.warning("%s%s cannot be listed: %s", MODELS, name, error.message)
            self._agenda.put(name, self._clock() + LIST_EVERY_S)
            return
        if name in found:
            await self._take(found[name])
        else:
            await self._forget(name)

    async def _forget(self, name: str) -> None:
        """The folder is gone; a checkpoint that was made of it stays."""
        self._found.pop(name, None)
        with disk_errors(self._root):
            await in_thread(remove_tree, self._root / name)

    async def _take(self, folder: ModelFolder) -> None:
        """Brings what is known of a folder up to date, and imports it if it is complete."""
        known = self._found.get(folder.name)
        settled = (ImportState.IMPORTED, ImportState.REFUSED, ImportState.INCOMPLETE)
        if known and known.fingerprint == folder.fingerprint and known.state in settled:
            return
        name, fingerprint = folder.name, folder.fingerprint
        try:
            if digest := await self._noted(folder):
                self._know(Import(name, fingerprint, ImportState.IMPORTED, digest=digest))
                return
            verdict = judge(folder, await self._read(folder))
            if verdict.refused:
                log.warning("%s%s is refused: %s", MODELS, name, verdict.refused)
                state = Import(name, fingerprint, ImportState.REFUSED, reason=verdict.refused)
                self._know(self._beside(known, state))
            elif verdict.lacking:
                state = Import(name, fingerprint, ImportState.INCOMPLETE, verdict.lacking)
                self._know(self._beside(known, state))
            else:
                await self._import(folder, verdict, known)
        except StokerError as error:
            log.warning("%s%s is not imported: %s", MODELS, name, error.message)
            state = Import(name, fingerprint, ImportState.FAILED, reason=error.message)
            self._know(self._beside(known, state))

    def _know(self, state: Import) -> None:
        self._found[state.name] = state
        self._news.set()

    def _beside(self, known: Import | None, state: Import) -> Import:
        """What was imported before stays what the name stands for."""
        return replace(state, digest=known.digest) if known else state

    async def _read(self, folder: ModelFolder) -> dict[str, object]:
        """The JSON of the files that say what belongs to a folder; None for what is none."""
        read: dict[str, object] = {}
        for path in to_read(folder):
            try:
                data = await self._bucket.get(folder.objects[path].key, MAX_JSON_BYTES)
                read[path] = await in_thread(orjson.loads, data)
            except (ValueError, PayloadTooLarge):
                read[path] = None
        return read

    # --- importing ------------------------------------------------------------------------------

    async def _import(self, folder: ModelFolder, verdict: Verdict, known: Import | None) -> None:
        name = folder.name
        total_bytes = sum(folder.objects[path].size_bytes for path in verdict.wanted)
        state = self._beside(
            known,
            Import(name, folder.fingerprint, ImportState.IMPORTING, total_bytes=total_bytes),
        )
        self._know(state)
        came: dict[str, int] = {}

        def report(path: str, done_bytes: int) -> None:
            came[path] = done_bytes
            self._know(replace(state, done_bytes=sum(came.values())))

        staged = self._root / name / folder.fingerprint
        files = staged / "files"
        await in_thread(_stage, staged, verdict.wanted)

        async def bring(path: str) -> None:
            await self._fetch(folder.objects[path], files / path, lambda done: report(path, done))

        await some_at_once(MAX_FILES_AT_ONCE, (partial(bring, path) for path in verdict.wanted))
        artifact = await self._registry.make(staged, name, lambda *_: None)
        note = _Note(_NOTE_VERSION, folder.fingerprint, artifact.digest)
        await self._bucket.put(f"{IMPORTS}{name}.json", _NOTE.dump_json(note))
        log.info("%s%s is checkpoint %s", MODELS, name, artifact.digest)
        self._know(Import(name, folder.fingerprint, ImportState.IMPORTED, digest=artifact.digest))

    async def _fetch(
        self, stored: StoredObject, target: Path, report: Callable[[int], None]
    ) -> FileDigest | None:
        """The file as its object was when it was listed; None where it had come before."""
        url = await self._bucket.call(stored.key, self._bucket.url, stored, SIGNED_FOR_S)
        source = Source(url, etag=f'"{stored.etag}"')
        try:
            fetched = await aio.fetch(source, target, progress=lambda done, _total: report(done))
        except DestinationExistsError:  # by an import of the same state that was cut off
            return None
        except LoaderError as error:
            raise checkpoint_error(error, target.parent) from error
        report(stored.size_bytes)
        return fetched.digest

    async def _noted(self, folder: ModelFolder) -> Digest | None:
        """The checkpoint that was made of this state of the folder, if it is still there."""
        try:
            data = await self._bucket.get(f"{IMPORTS}{folder.name}.json", MAX_NOTE_BYTES)
            note = _NOTE.validate_json(data)
        except (ObjectNotFound, PayloadTooLarge, ValidationError):
            return None
        if note.version != _NOTE_VERSION or note.fingerprint != folder.fingerprint:
            return None
        try:
            artifact = await self._registry.resolve(note.digest)
        except CheckpointNotFound:
            return None
        return artifact.digest if await self._registry.store.is_sound(artifact.digest) else None


def _stage(staged: Path, paths: tuple[str, ...]) -> None:
    """Makes the folders for one state of a bucket's folder; what came of earlier ones goes."""
    with disk_errors(staged):
        for other in list(staged.parent.iterdir()) if staged.parent.is_dir() else []:
            if other != staged:
                remove_tree(other)
        files = staged / "files"
        for parent in sorted({(files / path).parent for path in paths}):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)


def _why_not(name: str, found: Import | None) -> str:
    folder = f"{MODELS}{name}"
    if found is None:
        return f"the bucket has no folder {folder}; upload the model's files to it"
    match found.state:
        case ImportState.INCOMPLETE:
            return f"{folder} lacks {', '.join(found.lacking)}; upload it"
        case ImportState.REFUSED | ImportState.FAILED:
            return f"{folder} is no checkpoint: {found.reason}"
        case _:
            return (
                f"{folder} is being imported ({found.done_bytes} of {found.total_bytes} bytes);"
                " try again"
            )
