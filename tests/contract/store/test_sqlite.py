"""What only a store with a file can get wrong: crashes, foreign files, and disks that refuse."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoker.errors import StorageFull
from stoker.store.base import Compare, LeaseNotFound, Put, StorageReadOnly, StoreUnusable
from stoker.store.sqlite import SCHEMA_VERSION, SqliteStore

CRASHES = 15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mounting, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"this user cannot mount a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def write_until_killed(path: Path, first: int, acknowledgements: int) -> set[int]:
    """The numbers that a writer acknowledged before it was killed in the middle of its work."""
    script = Path(__file__).with_name("acknowledging_writer.py")
    writer = subprocess.Popen(
        [sys.executable, str(script), str(path), str(first)], stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    acknowledged = {int(writer.stdout.readline()) for _ in range(acknowledgements)}
    writer.kill()
    rest, _ = writer.communicate()
    return acknowledged | {int(line) for line in rest.splitlines(keepends=True) if b"\n" in line}


async def test_every_acknowledged_write_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    dice = random.Random(20240607)
    acknowledged: set[int] = set()
    for crash in range(CRASHES):
        acknowledged |= write_until_killed(path, crash * 100_000, dice.randrange(1, 120))
    store = await SqliteStore.open(path)
    found = {entry.key: entry.value for entry in (await store.range("")).entries}
    await store.close()
    assert len(acknowledged) > CRASHES
    for number in acknowledged:
        assert found.get(f"n/{number}") == str(number).encode() * 50
    # A transaction is there whole or not at all, acknowledged or not.
    assert {key[2:] for key in found if key[0] == "n"} == {
        key[5:] for key in found if key[0] == "t"
    }


async def test_entries_revisions_and_leases_are_there_after_reopening(
    tmp_path: Path, clock: object
) -> None:
    path = tmp_path / "s.db"
    store = await SqliteStore.open(path, clock=clock)  # type: ignore[arg-type]
    lease = await store.grant(10)
    await store.commit([], [Put("a", b"1"), Put("leased", b"x", lease)])
    await store.commit([Compare("a", 1)], [Put("a", b"\x00\xff")])
    before = await store.range("")
    await store.close()

    store = await SqliteStore.open(path, clock=clock)  # type: ignore[arg-type]
    assert await store.range("") == before
    gone = asyncio.ensure_future(anext(store.watch("leased", before.revision)))
    clock.advance(10)  # type: ignore[attr-defined]
    assert (await gone).entry is None
    await store.close()

    store = await SqliteStore.open(path, clock=clock)  # type: ignore[arg-type]
    assert await store.get("leased") is None
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease)
    assert await store.commit([], [Put("b", b"")]) == before.revision + 2
    await store.close()


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    assert stat.S_IMODE((tmp_path / "s.db").stat().st_mode) == 0o600
    await store.close()


def open_in_another_process(path: Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import asyncio, sys; from pathlib import Path;"
        "from stoker.store.sqlite import SqliteStore;"
        "asyncio.run(SqliteStore.open(Path(sys.argv[1])))"
    )
    arguments = [sys.executable, "-c", script, str(path)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


async def test_a_file_that_is_open_elsewhere_is_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    refused = open_in_another_process(tmp_path / "s.db")
    assert refused.returncode == 1
    assert "StoreUnusable" in refused.stderr
    assert "another stoker has it open" in refused.stderr
    await store.close()


async def test_a_foreign_file_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE mine (x)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="of another program"):
        await SqliteStore.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
async def test_another_schema_version_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "s.db"
    await (await SqliteStore.open(path)).close()
    with sqlite3.connect(path) as changed:
        changed.execute(f"PRAGMA user_version={version}")
    changed.close()
    with pytest.raises(StoreUnusable, match=f"schema version {version}"):
        await SqliteStore.open(path)


async def test_a_file_that_is_not_sqlite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(b"name: not a database\n" * 200)
    with pytest.raises(StoreUnusable, match="not an SQLite file"):
        await SqliteStore.open(path)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match=r"missing/s\.db"):
        await SqliteStore.open(tmp_path / "missing" / "s.db")


async def fill(store: SqliteStore) -> None:
    for number in range(1000):
        await store.commit([], [Put(f"k/{number:04d}", os.urandom(4096))])


async def test_a_full_disk_is_said_and_once_there_is_space_writing_goes_on(
    small_disk: Path,
) -> None:
    store = await SqliteStore.open(small_disk / "s.db")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400 << 10))
    with pytest.raises(StorageFull, match="is full") as caught:
        await fill(store)
    assert caught.type is StorageFull
    acknowledged = len((await store.range("k/")).entries)
    assert acknowledged > 0
    ballast.unlink()
    await store.commit([], [Put("after", b"")])
    await store.close()

    store = await SqliteStore.open(small_disk / "s.db")
    assert len((await store.range("k/")).entries) == acknowledged
    assert await store.get("after") is not None
    await store.close()


@contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG: a real system call that fails for no want of space."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_after_a_failed_write_nothing_is_acknowledged_until_the_file_is_read_again(
    tmp_path: Path,
) -> None:
    store = await SqliteStore.open(tmp_path / "s.db")
    await store.commit([], [Put("before", b"1")])
    with no_file_longer_than(64 << 10), pytest.raises(StoreUnusable, match="disk I/O error"):
        await store.commit([], [Put("large", os.urandom(512 << 10))])
    with pytest.raises(StoreUnusable, match="disk I/O error"):
        await store.commit([], [Put("after", b"")])
    assert await store.get("before") is not None
    await store.close()

    store = await SqliteStore.open(tmp_path / "s.db")
    assert [entry.key for entry in (await store.range("")).entries] == ["before"]
    await store.commit([], [Put("after", b"")])
    await store.close()


async def test_a_lease_that_cannot_be_ended_for_want_of_space_ends_later(
    small_disk: Path, clock: object
) -> None:
    store = await SqliteStore.open(small_disk / "s.db", clock=clock)  # type: ignore[arg-type]
    lease = await store.grant(10)
    await store.commit([], [Put("a", b"", lease)])
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError):  # noqa: PT012
        while True:
            file.write(bytes(4096))
    clock.advance(10)  # type: ignore[attr-defined]
    with pytest.raises(StorageFull):
        await store.commit([], [Put("x", bytes(65536))])
    assert await store.get("a") is not None  # nothing is shown that is not durable
    ballast.unlink()
    gone = asyncio.ensure_future(anext(store.watch("a", 1)))
    clock.advance(10)  # type: ignore[attr-defined]
    assert (await gone).entry is None
    await store.close()


def make_read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


async def test_a_read_only_disk_is_said_when_the_store_is_opened(small_disk: Path) -> None:
    await (await SqliteStore.open(small_disk / "s.db")).close()
    make_read_only(small_disk)
    with pytest.raises(StorageReadOnly, match="cannot be written"):
        await SqliteStore.open(small_disk / "s.db")
