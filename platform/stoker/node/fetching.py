"""Brings an artifact's files to a folder of this node.

What is read whole comes first: configuration, tokenizer, sidecars. Then the weights, which may be
opened as soon as their fetches have begun (`stoker_loader.open_arriving`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stoker.checkpoints.faults import CHUNK_BYTES, checkpoint_error
from stoker.checkpoints.records import READ_ONLY_MODE, FileStat, look, snapshot
from stoker.checkpoints.store import Signed, StoreRefused, StoreUnreachable
from stoker.checkpoints.waiting import in_thread, some_at_once
from stoker.errors import CheckpointInvalid, StokerError
from stoker.store.disk import disk_errors
from stoker_loader import FileDigest, Source, aio
from stoker_loader.errors import (
    ChunkMismatchError,
    DestinationExistsError,
    FetchError,
    LengthMismatchError,
    LoaderError,
    RangeRefusedError,
    SourceChangedError,
    SourceMissingError,
    SourceRefusedError,
)
from stoker_loader.page_cache import Progress

MAX_FILES_AT_ONCE = 8
WEIGHTS = ".safetensors"
PART_SUFFIX, MAP_SUFFIX = ".part", ".map"  # of a file on its way, and of the map of that
# What a store answers when its object is no longer the one that was put there.
OTHER_OBJECT = (
    ChunkMismatchError,
    LengthMismatchError,
    RangeRefusedError,
    SourceChangedError,
    SourceMissingError,
)


@dataclass(slots=True)
class Course:
    """How an artifact's files come; `readable` and `filled` hear of it at their time.

    It is readable once all but the weights are whole and those have begun to arrive (never, where
    it has none that could be opened then), and filled once the last byte was compared.
    """

    readable: Callable[[], None]
    filled: Callable[[int], None]  # gets the bytes that came
    files: int = 0  # how many there are
    weights: frozenset[str] = frozenset()  # those that can be opened while they arrive
    brought_bytes: int = 0
    stats: dict[str, FileStat] = field(default_factory=dict)  # of each file, when it was compared
    _begun: set[str] = field(default_factory=set)
    _full: set[str] = field(default_factory=set)

    def progress(self, file: FileDigest, *, resumes: bool) -> Progress:
        """Hears of one file on its way."""
        # What an earlier fetch has left is there when this one says its first word.
        seen_bytes = None if resumes else 0

        def reported(done_bytes: int, _total_bytes: int) -> None:
            nonlocal seen_bytes
            self.brought_bytes += done_bytes - (done_bytes if seen_bytes is None else seen_bytes)
            seen_bytes = done_bytes
            self._at(file, full=done_bytes == file.size_bytes)

        return reported

    def done(self, file: FileDigest, stat: FileStat) -> None:
        """A file is there, brought or found."""
        self.stats[file.name] = stat
        self._at(file, full=True)

    def _at(self, file: FileDigest, *, full: bool) -> None:
        if file.name in self.weights - self._begun:
            self._begun.add(file.name)
            if self._begun == self.weights:
                self.readable()
        if full and file.name not in self._full:
            self._full.add(file.name)
            if len(self._full) == self.files:
                self.filled(self.brought_bytes)


async def bring(location: Signed, folder: Path, course: Course) -> None:
    """Fetches all files that `folder` lacks, each compared with its digest, synced and read-only;
    what is not of the artifact goes first.

    When cancelled, or when it fails, what has come stays and a later call goes on from there.
    Raises CheckpointInvalid, StoreUnreachable, StoreRefused, StorageFull, StorageReadOnly.
    """
    files = location.content.digest.files
    named = (file.name for file in files)
    weights = frozenset(name for name in named if name.endswith(WEIGHTS) and "/" not in name)
    if len(weights) > MAX_FILES_AT_ONCE:  # none can be opened before all have begun
        weights = frozenset()
    course.files, course.weights = len(files), weights

    async def fetch(file: FileDigest) -> None:
        path = folder / file.name
        resumes = await in_thread(path.with_name(path.name + PART_SUFFIX).exists)
        progress = course.progress(file, resumes=resumes)
        await _fetch(location.sources[file.name], folder, file, progress)
        course.done(file, await in_thread(_sealed, path))

    await in_thread(_tidy, folder, files)
    first = (partial(fetch, file) for file in files if file.name not in weights)
    await some_at_once(MAX_FILES_AT_ONCE, first)
    last = (partial(fetch, file) for file in files if file.name in weights)
    await some_at_once(MAX_FILES_AT_ONCE, last)


async def _fetch(source: Source, folder: Path, file: FileDigest, progress: Progress) -> None:
    path = folder / file.name
    try:
        try:
            await aio.fetch(source, path, expected=file, progress=progress)
        except DestinationExistsError:  # of an earlier start, or changed since
            if await _is(path, file):
                return
            with disk_errors(path):
                path.unlink()
            await aio.fetch(source, path, expected=file, progress=progress)
    except LoaderError as error:
        raise _as_ours(error, folder, file) from error


async def _is(path: Path, file: FileDigest) -> bool:
    try:
        return (await aio.digest(path)).files[0].chunks == file.chunks
    except LoaderError:  # of a sector that the disk cannot read any more, say
        return False


def _as_ours(error: LoaderError, folder: Path, file: FileDigest) -> StokerError:
    """What went wrong, as a member of the platform's error tree."""
    details: dict[str, object] = {"reason": error.code, "file": file.name}
    match error:
        case ChunkMismatchError() if error.offset is not None:
            chunk = error.offset // CHUNK_BYTES
            return CheckpointInvalid(
                f"{file.name}: the store sends chunk {chunk} with other bytes than were pushed;"
                " push the checkpoint again",
                details=details | {"chunk": chunk},
            )
        case _ if isinstance(error, OTHER_OBJECT):
            return CheckpointInvalid(
                f"{file.name} was replaced or removed in the store; push the checkpoint again",
                details=details,
            )
        case SourceRefusedError():
            return StoreRefused(f"the store refuses {file.name}: {error.message}", details=details)
        case FetchError():
            return StoreUnreachable(
                f"the store does not send {file.name}: {error.message}", details=details
            )
    return checkpoint_error(error, folder)


def _tidy(folder: Path, files: Iterable[FileDigest]) -> None:
    """Makes the folders of the files, and removes what is neither one of them nor a part of one."""
    names = {file.name for file in files}
    with disk_errors(folder):
        for parent in sorted({(folder / name).parent for name in names} | {folder}):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in snapshot(folder):
            if name.removesuffix(MAP_SUFFIX).removesuffix(PART_SUFFIX) not in names:
                (folder / name).unlink()


def _sealed(path: Path) -> FileStat:
    """How a file looks when nobody writes to it any more."""
    with disk_errors(path):
        path.chmod(READ_ONLY_MODE)
        return look(path)
