"""Fetching over HTTP: what arrives, what is refused, and what survives."""

from __future__ import annotations

import os
import random
import shutil
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


def test_several_sources_bring_one_file(target: Path, expected: sl.FileDigest) -> None:
    with ExitStack() as stack:
        stores = [stack.enter_context(served(ObjectStore(BODY, f'"{n}"'))) for n in range(2)]
        stalls = [Stalls(store, None) for store in stores]
        for store, stall in zip(stores, stalls, strict=True):
            store.faults.append(stall)

        def go_on(done: int, total: int) -> None:
            if all(stall.reached.is_set() for stall in stalls):
                for stall in stalls:
                    stall.release()

        limits = sl.FetchLimits(streams=1, hedge_after_s=600)
        urls = [store.url for store in stores]
        fetched = sl.fetch(urls, target, expected=expected, limits=limits, progress=go_on)
    assert_arrived(target, fetched, expected)
    assert sum(fetched.stats.bytes_by_source) == len(BODY)
    assert all(brought >= 5 for brought in fetched.stats.bytes_by_source)
    assert not {*stores[0].ranges} & {*stores[1].ranges}, "and each brings another part"


@pytest.mark.parametrize("streams", [1, 3])
def test_connections_are_kept_and_no_more_than_asked_for(
    store: ObjectStore, target: Path, expected: sl.FileDigest, streams: int
) -> None:
    limits = sl.FetchLimits(streams=streams, hedge_after_s=600)
    assert_arrived(target, sl.fetch(store.url, target, limits=limits), expected)
    assert len(store.asked) == 5
    assert store.most_at_once <= streams
    assert len(store.peers) <= streams + 1  # and the one that asked for the length


def test_a_signature_is_sent_as_it_is(store: ObjectStore, target: Path) -> None:
    sl.fetch(store.url, target)
    assert {one.query for one in store.asked} == {"X-Amz-Signature=top-secret"}


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


@pytest.mark.parametrize("at_once", [False, True])
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
    store: ObjectStore, target: Path, code: int, error: type[Exception], at_once: bool
) -> None:
    """Of the chunks, and of the first request, which asks for the object's length and tag."""
    store.faults.append(status(code, all_of_them=at_once))
    with pytest.raises(error) as raised:
        sl.fetch(store.url, target, limits=FIRM)
    assert store.address in str(raised.value)
    assert "top-secret" not in str(raised.value) + repr(raised.value) + repr(sl.Source(store.url))
    assert not target.exists()
    if at_once:
        assert list(target.parent.iterdir()) == []
        assert store.ranges == []


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_passing_failure_passes(
    store: ObjectStore, target: Path, expected: sl.FileDigest, code: int
) -> None:
    store.faults.append(status(code, times=3, all_of_them=True))
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


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ca.pem`, which nobody trusts, and a server's `leaf.pem` and `leaf.key`."""
    folder = tmp_path_factory.mktemp("authority")
    (folder / "config").write_text(
        "[req]\ndistinguished_name=dn\nprompt=no\n[dn]\nCN=a test\n"
        "[ca]\nbasicConstraints=critical,CA:TRUE\n"
        "[leaf]\nbasicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n"
    )
    new = ["openssl", "req", "-config", "config", "-newkey", "rsa:2048", "-nodes"]
    steps = [
        [*new, "-x509", "-extensions", "ca", "-keyout", "ca.key", "-out", "ca.pem"],
        [*new, "-keyout", "leaf.key", "-out", "leaf.csr"],
        ["openssl", "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
         "-CAcreateserial", "-extfile", "config", "-extensions", "leaf", "-out", "leaf.pem"],
    ]  # fmt: skip
    for step in steps:
        subprocess.run(step, cwd=folder, check=True, capture_output=True)
    return folder


FETCH_TO = """
import sys, stoker_loader as sl
try:
    print(len(sl.fetch(sys.argv[1], sys.argv[2], limits=sl.FetchLimits(attempts=1)).digest.chunks))
except sl.LoaderError as error:
    print(error.code)
"""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
@pytest.mark.parametrize("trusted", [True, False])
def test_https_takes_only_certificates_that_the_machine_trusts(
    target: Path, authority: Path, trusted: bool
) -> None:
    store = ObjectStore(BODY)
    certificate = (authority / "leaf.pem", authority / "leaf.key")
    environment = dict(os.environ, SSL_CERT_FILE=str(authority / "ca.pem")) if trusted else None
    with served(store, certificate):
        done = subprocess.run(
            [sys.executable, "-c", FETCH_TO, store.url, target],
            capture_output=True,
            text=True,
            env=environment,
        )
    assert done.stdout == ("4\n" if trusted else "source_failed\n"), done.stderr
    assert target.exists() == trusted
    assert bool(store.asked) == trusted


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


# Asks a name server that never answers, in a world of its own, and stops when it has been asked.
SILENT_NAMES = """
import fcntl, socket, struct, sys
import stoker_loader as sl

names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(names, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
names.bind(("127.0.0.1", 53))
names.setblocking(False)

def stop(done, total):
    try:
        names.recv(512)
    except BlockingIOError:
        return
    raise InterruptedError

try:
    sl.fetch("http://nobody.example/weights", sys.argv[1], progress=stop)
except InterruptedError:
    print("stopped")
"""


def test_a_silent_name_server_does_not_keep_from_stopping(disk: Path) -> None:
    (disk / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
    shell = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    world = ["unshare", "--user", "--map-root-user", "--net", "--mount", "sh", "-c", shell, "sh"]
    command = [*world, disk / "resolv.conf", sys.executable, "-c", SILENT_NAMES, disk / "weights"]
    direct = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=25, env=direct)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this kernel or container allows no namespaces")
    assert done.stdout == "stopped\n", done.stderr


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
