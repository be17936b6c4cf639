"""A conversion's private folder beside its destination, which appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoker_loader.conversion.storage import storage_errors
from stoker_loader.errors import ConversionBusyError, DestinationExistsError, StorageError


@contextmanager
def staging(destination: Path) -> Iterator[Path]:
    """An empty folder beside `destination`, gone at the end whatever happens.

    It is locked while in use. The kernel drops the lock of a process that dies, and the next
    conversion to this destination empties what that one left. Raises DestinationExistsError,
    ConversionBusyError, StorageError.
    """
    refuse_existing(destination)
    _make_parents(destination)
    folder = destination.with_name(f".{destination.name}.converting")
    with storage_errors(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _lock(lock, folder, destination)
        try:
            with storage_errors(folder):
                _empty(folder)
            yield folder
        finally:
            # While it is locked: nobody else can have begun to use it.
            _remove(folder)
    finally:
        os.close(lock)


def publish(folder: Path, destination: Path) -> None:
    """Give a folder whose files are on disk its name. Raises DestinationExistsError."""
    refuse_existing(destination)
    with storage_errors(destination):
        folder.rename(destination)
        parent = os.open(destination.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def refuse_existing(destination: Path) -> None:
    """Raises DestinationExistsError if anything, even a broken link, has this name."""
    if os.path.lexists(destination):
        raise DestinationExistsError(
            f"{destination}: exists already, and nothing is ever written over it; name another"
            " destination",
            file=str(destination),
        )


def _make_parents(destination: Path) -> None:
    """Raises StorageError, also where one of the folders above is something else."""
    with storage_errors(destination):
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            blocking = next(path for path in destination.parents if os.path.lexists(path))
            raise StorageError(
                f"{destination}: {blocking} is no directory, so nothing can be made in it; name"
                " another destination",
                file=str(destination),
                errno=error.errno,
            ) from error


def _lock(lock: int, folder: Path, destination: Path) -> None:
    """Raises ConversionBusyError if another has the lock, or removed the folder with it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(lock), folder.stat(follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:
        raise ConversionBusyError(
            f"{destination}: another conversion is writing it; wait for that one, or name"
            " another destination",
            file=str(destination),
        )


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:  # an interrupt, which is raised again when this is done
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
