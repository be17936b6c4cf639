"""From the files of an upload to the folder of an artifact, laid out and digested."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import stoker_loader
from stoker.checkpoints.faults import checkpoint_error
from stoker.checkpoints.files import Kind
from stoker.checkpoints.staging import remove_tree
from stoker.store.disk import disk_errors
from stoker_loader.errors import LoaderError

StageProgress = Callable[[str, int, int], None]  # stage, bytes done, bytes in all


class Stopped(Exception):
    """The ingest was told to stop, because nobody waits for it any more."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Asks native work in another thread to end at its next progress report."""

    _asked: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        self._asked.set()

    def check(self) -> None:
        if self._asked.is_set():
            raise Stopped


@dataclass(frozen=True, slots=True)
class Ingested:
    """A folder that is ready to be put in its place: all its bytes are on the disk."""

    folder: Path
    digest: stoker_loader.Digest
    size_bytes: int


def ingest(kind: Kind, upload: Path, progress: StageProgress, stop: Stop) -> Ingested:
    """Makes an artifact's folder of the complete upload in the folder `upload`.

    A checkpoint becomes the aligned layout in `result`; a handler's sources stay where they are.
    Raises CheckpointInvalid, StorageFull, StorageReadOnly, Stopped; nothing half-made remains.
    """
    files = upload / "files"

    def report(stage: str) -> Callable[[int, int], None]:
        def reported(done_bytes: int, total_bytes: int) -> None:
            stop.check()
            progress(stage, done_bytes, total_bytes)

        return reported

    try:
        if kind is Kind.CHECKPOINT:
            result = upload / "result"
            with disk_errors(upload):
                remove_tree(result)
            laid_out = stoker_loader.layout(files, result, report("layout"))
            return Ingested(result, laid_out.digest, laid_out.checkpoint_bytes)
        digest = stoker_loader.digest(files, report("digest"))
    except LoaderError as error:
        raise checkpoint_error(error, files) from error
    return Ingested(files, digest, sum(file.size_bytes for file in digest.files))
