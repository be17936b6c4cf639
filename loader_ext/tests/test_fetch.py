"""Fetching over HTTP: what arrives, what is refused, and what survives."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import stoker_loader as sl
from stoker_loader import errors
from support.broken_line import broken_line
from support.object_store import Asked, ObjectStore, Stalls, breaks_off, served, status, trickles

CHUNK = 8 << 20
BODY = random.Random(1).randbytes(3 * CHUNK + 5)
FIRM = sl.FetchLimits(streams=2, attempts=2)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with served(ObjectStore(BODY)) as store:
        yield store


@pytest.fixture
def target(disk: Path) -> Path:
    return disk / "weights"


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> sl.FileDigest:
    path = tmp_path_factory.mktemp("expected") / "weights"
    path.write_bytes(BODY)
    (digest,) = sl.digest(path).files
    return digest


def assert_arrived(target: Path, fetched: sl.Fetched, expected: sl.FileDigest) -> None:
    assert target.read_bytes() == BODY
    assert fetched.digest == expected
    assert sorted(path.name for path in target.parent.iterdir()) == [target.name]


def test_a_file_arrives_whole(store: ObjectStore, target: Path, expected: sl.FileDigest) -> None:
    seen: list[tuple[int, int]] = []
    fetched = sl.fetch(store.url, target, progress=lambda done, total: seen.append((done, total)))
    assert_arrived(target, fetched, expected)
    assert fetched.stats.bytes_by_source == (len(BODY),)
    assert sorted(store.ranges) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert all(one.if_match == '"one"' for one in store.asked if one.last > 0)
    assert seen == sorted(seen)
    assert seen[-1] == (len(BODY), len(BODY))


def test_sources_share_the_work(target: Path, expected: sl.FileDigest) -> None:
    with ExitStack() as stack:
        stores = [stack.enter_context(served(ObjectStore(BODY, f'"{n}"'))) for n in range(2)]
        # One stream each, and the first one's holds still: the other brings all.
        stores[0].faults.append(Stalls(stores[0], None))
        limits = sl.FetchLimits(streams=1, hedge_after_s=0.05)
        fetched = sl.fetch([one.url for one in stores], target, expected=expected, limits=limits)
    assert_arrived(target, fetched, expected)
    assert fetched.stats.bytes_by_source == (0, len(BODY))


def test_an_empty_object_is_a_file(target: Path) -> None:
    with served(ObjectStore(b"")) as store:
        assert sl.fetch(store.url, target).digest.chunks == ()
    assert target.read_bytes() == b""


def test_what_exists_is_not_replaced(store: ObjectStore, target: Path) -> None:
    target.write_bytes(b"mine")
    with pytest.raises(errors.DestinationExistsError):
        sl.fetch(store.url, target)
    assert target.read_bytes() == b"mine"
    assert store.asked == []


# --- bytes that are wrong -----------------------------------------------------------------------


def corrupted(place: int) -> bytes:
    return BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :]


def test_wrong_bytes_are_never_taken(target: Path, expected: sl.FileDigest) -> None:
    with (
        served(ObjectStore(corrupted(CHUNK + 7))) as store,
        pytest.raises(errors.ChunkMismatchError) as raised,
    ):
        sl.fetch(store.url, target, expected=expected)
    assert raised.value.offset == CHUNK
    assert not target.exists()


def test_a_source_of_wrong_bytes_is_made_good_by_another(
    target: Path, expected: sl.FileDigest
) -> None:
    with ExitStack() as stack:
        bad = stack.enter_context(served(ObjectStore(bytes(len(BODY)))))
        good = stack.enter_context(served(ObjectStore(BODY)))
        fetched = sl.fetch([bad.url, good.url], target, expected=expected)
    assert_arrived(target, fetched, expected)
    assert fetched.stats.bytes_by_source == (0, len(BODY))


def test_an_object_that_is_replaced_meanwhile_is_no_mix(store: ObjectStore, target: Path) -> None:
    def replace(done: int, total: int) -> None:
        if done:
            store.etag = '"two"'

    with pytest.raises(errors.SourceChangedError):
        sl.fetch(store.url, target, limits=sl.FetchLimits(streams=1), progress=replace)
    assert not target.exists()
    # What came of the first object is no part of the second.
    assert sl.fetch(store.url, target).stats.resumed_bytes == 0


def test_an_object_without_a_tag_is_known_by_its_time(store: ObjectStore, target: Path) -> None:
    store.etag, store.modified = None, "Mon, 01 Jun 2026 00:00:00 GMT"

    def replace(done: int, total: int) -> None:
        if done:
            store.modified = "Mon, 01 Jun 2026 00:00:01 GMT"

    with pytest.raises(errors.SourceChangedError):
        sl.fetch(store.url, target, limits=sl.FetchLimits(streams=1), progress=replace)
    assert not target.exists()
    assert sl.fetch(store.url, target).stats.resumed_bytes == 0


def test_a_length_that_is_not_the_expected_one_is_another_object(
    target: Path, expected: sl.FileDigest
) -> None:
    with served(ObjectStore(BODY[:-1])) as store, pytest.raises(errors.SourceChangedError):
        sl.fetch(store.url, target, expected=expected)


@pytest.mark.parametrize("total", [2**50 + 1, 2**63, 2**64 - 1])
def test_a_length_that_no_file_can_have_reserves_nothing(
    store: ObjectStore, target: Path, total: int
) -> None:
    async def boasts(asked: Asked, scope: Scope, receive: Receive, send: Send) -> bool:
        headers = {"content-range": f"bytes 0-0/{total}"}
        await Response(b"x", status_code=206, headers=headers)(scope, receive, send)
        return True

    store.faults.append(boasts)
    with pytest.raises(errors.SourceFailedError, match=f"has {total} bytes, as no file can"):
        sl.fetch(store.url, target, limits=FIRM)
    assert list(target.parent.iterdir()) == []


# --- servers that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (200, errors.RangeIgnoredError),
        (302, errors.SourceRefusedError),
        (403, errors.SourceRefusedError),
        (404, errors.SourceMissingError),
        (412, errors.SourceChangedError),
        (416, errors.RangeRefusedError),
        (500, errors.SourceFailedError),
        (503, errors.SourceFailedError),
    ],
)
def test_every_refusal_has_its_error(
    store: ObjectStore, target: Path, code: int, error: type[Exception]
) -> None:
    store.faults.append(status(code))
    with pytest.raises(error) as raised:
        sl.fetch(store.url, target, limits=FIRM)
    assert store.address in str(raised.value)
    assert "top-secret" not in str(raised.value) + repr(raised.value) + repr(sl.Source(store.url))
    assert not target.exists()


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_failure_passes(
    store: ObjectStore, target: Path, expected: sl.FileDigest, code: int
) -> None:
    store.faults.append(status(code, times=3))
    assert_arrived(target, sl.fetch(store.url, target), expected)


def test_a_connection_that_breaks_off_is_made_again(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    store.faults.append(breaks_off(store, times=3))
    assert_arrived(target, sl.fetch(store.url, target), expected)


def test_a_connection_that_is_reset_is_made_again(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    with broken_line(store.address, CHUNK // 3, times=3) as line:
        url = store.url.replace(store.address, line.address)
        assert_arrived(target, sl.fetch(url, target), expected)
    assert line.resets == 3


def test_a_line_that_is_always_reset_is_an_error(store: ObjectStore, target: Path) -> None:
    with broken_line(store.address, CHUNK // 3, times=10**9) as line:
        url = store.url.replace(store.address, line.address)
        with pytest.raises(errors.SourceFailedError) as raised:
            sl.fetch(url, target, limits=FIRM)
    assert line.address in str(raised.value)
    assert "top-secret" not in str(raised.value)
    assert not target.exists()


def test_a_server_that_is_silent_for_good_is_an_error(store: ObjectStore, target: Path) -> None:
    store.faults.append(Stalls(store, None, times=10**9))
    limits = sl.FetchLimits(streams=1, attempts=2, stall_s=0.2, hedge_after_s=600)
    with pytest.raises(errors.SourceFailedError, match="no answer in time"):
        sl.fetch(store.url, target, limits=limits)
    assert store.ranges.count(0) == 2, "as often as allowed, and no oftener"
    assert not target.exists()


def test_a_stalled_range_is_asked_for_again(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    store.faults.append(Stalls(store, CHUNK))
    limits = sl.FetchLimits(streams=1, stall_s=0.3)
    assert_arrived(target, sl.fetch(store.url, target, limits=limits), expected)
    assert store.ranges.count(CHUNK) == 2


def test_a_range_that_trickles_is_asked_for_again(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    """Never silent for long, and yet it would never end: an answer as a whole has a bound."""
    store.faults.append(trickles(store, CHUNK, pieces=1000, pause_s=0.01))
    limits = sl.FetchLimits(streams=1, stall_s=0.05, attempts=50, hedge_after_s=600)
    assert_arrived(target, sl.fetch(store.url, target, limits=limits), expected)
    assert store.ranges.count(CHUNK) >= 2


def test_the_slowest_range_is_hedged(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    store.faults.append(Stalls(store, CHUNK))
    limits = sl.FetchLimits(streams=2, stall_s=600, hedge_after_s=0.1)
    assert_arrived(target, sl.fetch(store.url, target, limits=limits), expected)


def test_nobody_there_is_an_error(target: Path) -> None:
    with served(ObjectStore(BODY)) as store:
        gone = store.url
    with pytest.raises(errors.SourceFailedError):
        sl.fetch(gone, target, limits=FIRM)
    with pytest.raises(errors.NoSourceError):
        sl.fetch([], target)
    with pytest.raises(errors.SourceFailedError, match="not valid"):
        sl.fetch("no url", target)


# --- ends before the end ------------------------------------------------------------------------


class Enough(Exception):
    pass


def stop_after(wanted_bytes: int):  # type: ignore[no-untyped-def]
    def progress(done: int, total: int) -> None:
        if done >= wanted_bytes:
            raise Enough

    return progress


def test_a_fetch_that_was_stopped_goes_on(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    limits = sl.FetchLimits(streams=1)
    with pytest.raises(Enough):
        sl.fetch(store.url, target, limits=limits, progress=stop_after(2 * CHUNK))
    assert not target.exists()
    store.asked.clear()
    fetched = sl.fetch(store.url, target)
    assert_arrived(target, fetched, expected)
    assert fetched.stats.resumed_bytes >= 2 * CHUNK
    assert fetched.stats.resumed_bytes + sum(fetched.stats.bytes_by_source) == len(BODY)
    assert 0 not in store.ranges


def test_what_an_earlier_fetch_left_is_verified(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    with pytest.raises(Enough):
        sl.fetch(store.url, target, progress=stop_after(CHUNK), limits=sl.FetchLimits(streams=1))
    part = target.with_name("weights.part")
    with part.open("r+b") as file:
        file.seek(99)
        file.write(bytes([BODY[99] ^ 1]))
    store.asked.clear()
    assert_arrived(target, sl.fetch(store.url, target), expected)
    assert 0 in store.ranges


def test_a_stall_does_not_keep_from_stopping(store: ObjectStore, target: Path) -> None:
    stall = Stalls(store, 0)
    store.faults.append(stall)

    def progress(done: int, total: int) -> None:
        if stall.reached.is_set():
            raise Enough

    with pytest.raises(Enough):
        sl.fetch(store.url, target, limits=sl.FetchLimits(stall_s=600), progress=progress)


def test_one_process_fetches_a_file(store: ObjectStore, target: Path) -> None:
    stall = Stalls(store, 0)
    store.faults.append(stall)
    done = threading.Event()

    def progress(*_: int) -> None:
        if done.is_set():
            raise Enough

    def first() -> None:
        with pytest.raises(Enough):
            sl.fetch(store.url, target, limits=sl.FetchLimits(stall_s=600), progress=progress)

    thread = threading.Thread(target=first)
    thread.start()
    try:
        assert stall.reached.wait(30)
        with pytest.raises(errors.FetchBusyError):
            sl.fetch(store.url, target)
    finally:
        done.set()
        thread.join(30)
    assert not thread.is_alive()


CHILD = """
import os, signal, sys, stoker_loader as sl

def die(done, total):
    if done > int(sys.argv[3]):
        print(done, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

sl.fetch(sys.argv[1], sys.argv[2], limits=sl.FetchLimits(streams=1), progress=die)
"""


def test_a_fetch_that_is_killed_loses_nothing_and_promises_nothing(
    store: ObjectStore, target: Path, expected: sl.FileDigest
) -> None:
    """Killed at the first sign of each further chunk, it ends nevertheless."""
    reached = 0
    deaths = 0
    while True:
        command = [sys.executable, "-c", CHILD, store.url, str(target), str(reached)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if child.returncode == 0:
            break
        assert child.returncode == -signal.SIGKILL
        assert int(child.stdout) > reached
        assert not target.exists()
        reached = int(child.stdout)
        deaths += 1
    assert deaths >= 3
    assert target.read_bytes() == BODY
    assert sl.digest(target).files == (expected,)
    assert not target.with_name("weights.part").exists()
    assert store.ranges.count(0) == 1, "what had arrived was not asked for again"
