"""The folders of complete artifacts.

    <root>/<hex digest>/...     immutable; appears by a rename when all of it is on the disk
           <hex digest>.json    its record, there before it

The rename is the moment at which an artifact exists: before it there is nothing, after it a crash
loses nothing. Every method touches the disk and belongs in a thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from pathlib import Path

import stoker_loader
from stoker.checkpoints.faults import checkpoint_error
from stoker.checkpoints.records import (
    VERSION,
    FileStat,
    Record,
    read_record,
    seal,
    snapshot,
    write_record,
)
from stoker.checkpoints.staging import GONE_PREFIX, remove_tree
from stoker.domain import Artifact, Digest
from stoker.errors import CheckpointInvalid, CheckpointNotFound
from stoker.store.disk import disk_errors, sync_directory
from stoker_loader.errors import LoaderError

# How no folder looks, not even an empty one.
NO_FOLDER = {"": FileStat(inode=-1, size_bytes=-1, mtime_ns=-1, ctime_ns=-1)}


class Shelf:
    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: Digest) -> Path:
        return self.root / digest.removeprefix("blake3:")

    def record(self, digest: Digest) -> Record:
        """Raises CheckpointNotFound unless both the folder and its record are there."""
        path = self.path(digest)
        record = read_record(self._record_path(digest)) if path.is_dir() else None
        if record is None:
            raise CheckpointNotFound(
                f"the files of {digest} are not in {self.root}; push them again with"
                " `stoker push DIR NAME`",
                param=digest,
            )
        return record

    def unchanged(self, digest: Digest) -> bool:
        """Whether the folder is there and looks as it did when its digests were taken."""
        try:
            with disk_errors(self.root):
                return snapshot(self.path(digest)) == self.record(digest).stats
        except CheckpointNotFound:
            return False

    def verify(self, digest: Digest) -> Path:
        """The folder, whose bytes are those of `digest`: known by its files' inodes and times, or
        by reading all of it again. Raises CheckpointNotFound, CheckpointInvalid."""
        record = self.record(digest)
        path = self.path(digest)
        with disk_errors(path):
            found = snapshot(path)
        if found == record.stats:
            return path
        try:
            stoker_loader.verify(path, record.digest)
        except LoaderError as error:
            raise checkpoint_error(error, path) from error
        self._write(Record(VERSION, record.artifact, record.digest, found))
        return path

    def distrust(self, digest: Digest) -> None:
        """Has the folder, of which a byte was found wrong, read again before it is served.
        Raises CheckpointNotFound."""
        record = self.record(digest)
        self._write(Record(VERSION, record.artifact, record.digest, NO_FOLDER))

    def place(self, folder: Path, artifact: Artifact, digest: stoker_loader.Digest) -> None:
        """Makes `folder` (its files synced) the folder of `artifact`.

        What is there already under the digest stays if it is intact, and is replaced if not. From
        another file system the files are copied first.
        """
        target = self.path(artifact.digest)
        with disk_errors(self.root):
            if target.is_dir():
                try:
                    self.verify(artifact.digest)
                except (CheckpointNotFound, CheckpointInvalid):
                    remove_tree(target)
                else:
                    remove_tree(folder)
                    return
            self.root.mkdir(parents=True, exist_ok=True)
            folder = self._on_this_disk(folder)
            seal(folder)
            self._write(Record(VERSION, artifact, digest, snapshot(folder)))
            folder.rename(target)
            sync_directory(self.root)

    def _on_this_disk(self, folder: Path) -> Path:
        """The folder, moved to the shelf's own file system if it is on another."""
        if folder.stat().st_dev == self.root.stat().st_dev:
            return folder
        copy = self.root / f".{secrets.token_hex(8)}"  # which a sweep removes
        try:
            _copy(folder, copy)
        except BaseException:
            remove_tree(copy)
            raise
        remove_tree(folder)
        return copy

    def records(self) -> list[Record]:
        """Those of the folders that are there, in the order of their digests."""
        with disk_errors(self.root):
            names = sorted(
                path.stem for path in self.root.glob("*.json") if path.with_suffix("").is_dir()
            )
        found = (read_record(self.root / f"{name}.json") for name in names)
        return [record for record in found if record is not None]

    def remove(self, digest: Digest) -> None:
        """Raises CheckpointNotFound."""
        record = self.record(digest)
        with disk_errors(self.root):
            remove_tree(self.path(record.artifact.digest))  # from here on it is not there
            remove_tree(self._record_path(digest))

    def sweep(self) -> None:
        """After a start: removes what a crash left half-made or half-removed, records without a
        folder among it."""
        with disk_errors(self.root):
            for path in sorted(self.root.iterdir()) if self.root.is_dir() else []:
                half_made = path.name.startswith((".", GONE_PREFIX))
                if half_made or (path.suffix == ".json" and not path.with_suffix("").is_dir()):
                    remove_tree(path)

    def _write(self, record: Record) -> None:
        write_record(self._record_path(record.artifact.digest), record)

    def _record_path(self, digest: Digest) -> Path:
        return self.path(digest).with_suffix(".json")


def _copy(folder: Path, copy: Path) -> None:
    """Copies the files below `folder`, and syncs them. Raises OSError."""
    try:
        shutil.copytree(folder, copy)
    except shutil.Error as error:  # of several files: what the first one met
        _, path, reason = error.args[0][0]
        full = os.strerror(errno.ENOSPC) in reason
        raise OSError(errno.ENOSPC if full else errno.EIO, reason, path) from error
    for parent, _, files in os.walk(copy):
        for name in files:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
