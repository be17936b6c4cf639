"""A store in one SQLite file: the embedded default.

WAL with `synchronous=FULL`: a commit returns after its frames are on the disk, so an acknowledged
write survives a crash of the process and of the machine (https://sqlite.org/pragma.html). One
thread does all that touches the file; the event loop never waits for the disk. The file is held
exclusively, because the reads come from this process's memory.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from stoker.errors import StokerError
from stoker.store.base import Clock, Entry, LeaseId, StoreUnusable
from stoker.store.disk import disk_errors, storage_full, storage_read_only, sync_directory
from stoker.store.keyspace import HISTORY_LIMIT, Batch, Keyspace
from stoker.store.local import LocalStore

APPLICATION_ID = 0x53544F4B  # "STOK", so that a foreign SQLite file is told from ours
SCHEMA_VERSION = 1
CHECKPOINT_PAGES = 1000  # of the WAL before it is folded into the file: 4 MB

SCHEMA = """
CREATE TABLE entry (
    key TEXT PRIMARY KEY, value BLOB NOT NULL,
    create_revision INTEGER NOT NULL, mod_revision INTEGER NOT NULL, lease INTEGER
) WITHOUT ROWID;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_s REAL NOT NULL);
CREATE TABLE latest (revision INTEGER NOT NULL);
INSERT INTO latest VALUES (0);
"""

T = TypeVar("T")


class SqliteStore(LocalStore):
    """A `Store` in a file; made by `open`."""

    def __init__(
        self,
        path: Path,
        keyspace: Keyspace,
        connection: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(keyspace, clock=clock)
        self._path = path
        self._connection = connection
        self._thread = thread
        self._broken: StokerError | None = None

    @classmethod
    async def open(
        cls, path: Path, *, clock: Clock | None = None, history_limit: int = HISTORY_LIMIT
    ) -> Self:
        """Opens the file, or makes it (mode 0600; its folder must exist).

        Raises StoreUnusable (foreign, corrupt, of another version, or open elsewhere),
        StorageReadOnly, StorageFull.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="stoker-store")
        loop = asyncio.get_running_loop()
        try:
            connection, keyspace = await loop.run_in_executor(
                thread, partial(_guarded, path, partial(_open, path, history_limit))
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(path, keyspace, connection, thread, clock=clock)

    async def close(self) -> None:
        if self._closed:
            return
        await super().close()
        await self._loop.run_in_executor(
            self._thread, partial(_guarded, self._path, self._connection.close)
        )
        self._thread.shutdown(wait=False)

    def _persist(self, batch: Batch) -> asyncio.Future[None] | None:
        return self._loop.run_in_executor(self._thread, partial(self._write, batch))

    def _write(self, batch: Batch) -> None:
        if self._broken is not None:
            raise self._broken
        try:
            _guarded(self._path, partial(_write, self._connection, batch))
        except StoreUnusable as error:
            # After a failed sync nobody knows what is on the disk (https://lwn.net/Articles/752063):
            # only reading the file again tells.
            self._broken = error
            raise


def _open(path: Path, history_limit: int) -> tuple[sqlite3.Connection, Keyspace]:
    created = not path.exists()
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        _check_schema(path, connection)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        # Takes the exclusive lock now, and finds a read-only disk now and not at the first write.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE latest SET revision = revision")
        connection.execute("COMMIT")
        keyspace = _read(connection, history_limit)
    except BaseException:
        connection.close()
        raise
    if created:
        sync_directory(path.parent)
    return connection, keyspace


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables == 0 and application == 0 and version == 0:
        marks = f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
        connection.executescript(f"BEGIN; {SCHEMA} {marks} COMMIT;")
        return
    if application != APPLICATION_ID:
        raise StoreUnusable(f"{path} is an SQLite file of another program; choose another --home")
    if version != SCHEMA_VERSION:
        raise StoreUnusable(
            f"{path} has schema version {version}, and this stoker reads version"
            f" {SCHEMA_VERSION}; use the stoker that wrote it, or another --home",
            details={"found_version": version, "expected_version": SCHEMA_VERSION},
        )


def _read(connection: sqlite3.Connection, history_limit: int) -> Keyspace:
    (revision,) = connection.execute("SELECT revision FROM latest").fetchone()
    entries = connection.execute(
        "SELECT key, value, create_revision, mod_revision, lease FROM entry"
    )
    leases = connection.execute("SELECT id, ttl_s FROM lease")
    return Keyspace(
        (Entry(*row) for row in entries),
        ((LeaseId(lease), ttl_s) for lease, ttl_s in leases),
        revision,
        history_limit=history_limit,
    )


def _write(connection: sqlite3.Connection, batch: Batch) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        for change in batch.changes:
            entry = change.entry
            if entry is None:
                connection.execute("DELETE FROM entry WHERE key = ?", (change.key,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?, ?)",
                    (
                        entry.key,
                        entry.value,
                        entry.create_revision,
                        entry.mod_revision,
                        entry.lease,
                    ),
                )
        if batch.granted is not None:
            connection.execute("INSERT INTO lease VALUES (?, ?)", batch.granted)
        if batch.revoked is not None:
            connection.execute("DELETE FROM lease WHERE id = ?", (batch.revoked,))
        connection.execute("UPDATE latest SET revision = ?", (batch.revision,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _guarded(path: Path, action: Callable[[], T]) -> T:
    """Runs `action`; what SQLite or the system raises becomes one of the store's errors."""
    try:
        with disk_errors(path):
            return action()
    except sqlite3.Error as error:
        raise _store_error(path, error) from error


def _store_error(path: Path, error: sqlite3.Error) -> StokerError:
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:  # the primary code
        case sqlite3.SQLITE_FULL:
            return storage_full(path)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return storage_read_only(path)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            reason = "another stoker has it open; stop that one, or choose another --home"
        case sqlite3.SQLITE_NOTADB:
            reason = "it is not an SQLite file; choose another --home"
        case sqlite3.SQLITE_CORRUPT:
            reason = f"it is corrupt ({error}); restore it from a backup, or choose another --home"
        case _:
            reason = str(error)
    return StoreUnusable(f"{path} cannot be used: {reason}", details={"path": str(path)})
