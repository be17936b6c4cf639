"""What is known of an artifact's folder: its digests, and how its files looked when those held.

A record lies beside the folder as `<hex digest>.json`, on the disk before the folder appears.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import stoker_loader
from stoker.domain import Artifact
from stoker.store.base import StoreUnusable
from stoker.store.disk import disk_errors, sync_directory

VERSION = 1
READ_ONLY_MODE = 0o444

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file whose inode and times are the same holds the same bytes: every write moves ctime."""

    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Record:
    version: int
    artifact: Artifact
    digest: stoker_loader.Digest
    stats: dict[str, FileStat]  # by path within the folder


_RECORD = TypeAdapter(Record)


def snapshot(folder: Path) -> dict[str, FileStat]:
    """How everything below `folder` looks now; what is no regular file has size -1, so that it
    never equals a record's."""
    found: dict[str, FileStat] = {}
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*files, *links):
            path = Path(parent) / name
            found[path.relative_to(folder).as_posix()] = look(path)
    return found


def look(path: Path) -> FileStat:
    """How one file looks now."""
    facts = path.lstat()
    size_bytes = facts.st_size if stat.S_ISREG(facts.st_mode) else -1
    return FileStat(facts.st_ino, size_bytes, facts.st_mtime_ns, facts.st_ctime_ns)


def seal(folder: Path) -> None:
    """Makes the files below `folder` read-only, and their names durable."""
    for parent, _, files in os.walk(folder):
        for name in files:
            (Path(parent) / name).chmod(READ_ONLY_MODE)
        sync_directory(Path(parent))


def read_record(path: Path) -> Record | None:
    """None if there is none, or one that is damaged: what it was about has to be pushed again.
    Raises StoreUnusable for one of another version."""
    with disk_errors(path):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
    try:
        record = _RECORD.validate_json(data)
    except ValidationError as error:
        log.warning("%s is damaged: %s", path, error)
        return None
    if record.version != VERSION:
        raise StoreUnusable(
            f"{path} has version {record.version}, and this stoker reads version {VERSION}"
        )
    return record


def write_record(path: Path, record: Record) -> None:
    """Puts a record in place whole and durably. Raises StorageFull, StorageReadOnly."""
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with disk_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(_RECORD.dump_json(record))
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
