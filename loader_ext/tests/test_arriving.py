"""Reading a checkpoint while it is on its way: usable as it comes, waited for where it has not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import stoker_loader as sl
from fake_cuda import StandIn, build
from stoker_loader import _native, errors
from stoker_loader.backends import SourceName
from stoker_loader.plans import columns, rows
from support.object_store import ObjectStore, Stalls, served

CHUNK = 8 << 20
TENSORS = {f"t{n}": np.random.default_rng(n).integers(0, 255, CHUNK, np.uint8) for n in range(4)}
BODY = save(TENSORS)
ONE = sl.FetchLimits(streams=1, stall_s=600, hedge_after_s=600)


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with served(ObjectStore(BODY)) as store:
        yield store


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


@pytest.fixture
def target(disk: Path) -> Path:
    return disk / "model.safetensors"


Begin = Callable[[ObjectStore, Path, int], "Fetching"]


class Fetching:
    """A fetch in a thread of its own, held at one chunk until it may go on or the test ends."""

    def __init__(self, threads: ThreadPoolExecutor, store: ObjectStore, target: Path, at: int):
        self._ended = threading.Event()
        self._stall = Stalls(store, at * CHUNK)
        store.faults.append(self._stall)
        self.result: Future[sl.Fetched] = threads.submit(
            sl.fetch, store.url, target, limits=ONE, progress=self._progress
        )

    def _progress(self, *_: int) -> None:
        if self._ended.is_set():
            raise ConnectionAbortedError

    def reached(self) -> None:
        assert self._stall.reached.wait(30)

    def go_on(self) -> None:
        self._stall.release()

    def end(self) -> None:
        self._ended.set()
        with pytest.raises(ConnectionAbortedError):
            self.result.result(30)


@pytest.fixture
def begin(threads: ThreadPoolExecutor) -> Iterator[Begin]:
    """Begins fetches that are held at a chunk, and have reached it."""
    begun: list[Fetching] = []

    def begin(store: ObjectStore, target: Path, at: int) -> Fetching:
        begun.append(Fetching(threads, store, target, at))
        begun[-1].reached()
        return begun[-1]

    yield begin
    for one in begun:
        one.go_on()


def equal(checkpoint: sl.Checkpoint, name: str) -> bool:
    return bool(np.array_equal(checkpoint.numpy(name), TENSORS[name]))


def test_a_tensor_is_usable_before_the_others_come(
    store: ObjectStore, target: Path, threads: ThreadPoolExecutor, begin: Begin
) -> None:
    fetching = begin(store, target, 3)
    with sl.open_arriving(target) as checkpoint:
        # The first three chunks hold two tensors whole, behind the header.
        assert equal(checkpoint, "t0")
        assert equal(checkpoint, "t1")
        waiting = threads.submit(equal, checkpoint, "t3")
        assert not waiting.done()
        assert not target.exists()
        fetching.go_on()
        assert waiting.result(30)
        fetching.result.result(30)
        assert all(equal(checkpoint, name) for name in TENSORS), "the mapping outlives the rename"
    assert target.read_bytes() == BODY


def test_who_opens_by_name_waits_for_the_name(
    store: ObjectStore, target: Path, threads: ThreadPoolExecutor, begin: Begin
) -> None:
    fetching = begin(store, target, 3)
    waiting = threads.submit(sl.wait_complete, target)
    assert not waiting.done()
    assert not target.exists()
    fetching.go_on()
    waiting.result(30)
    assert target.exists()
    sl.wait_complete(target)
    fetching.result.result(30)


@pytest.mark.parametrize("source", ["auto", "direct", "pread"])
def test_a_load_runs_along_with_the_fetch(
    store: ObjectStore, target: Path, begin: Begin, source: SourceName
) -> None:
    fetching = begin(store, target, 2)
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done >= 2 * CHUNK:
            fetching.go_on()

    with sl.open_arriving(target) as checkpoint:
        try:
            tensors = checkpoint.load(progress=progress, source=source)
        except errors.BackendRefusedError as error:
            pytest.skip(str(error))
        assert {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} == {
            name: array.tobytes() for name, array in TENSORS.items()
        }
        assert checkpoint.stats.bytes_by_tier["remote"] == len(BODY) - 2 * CHUNK
        assert checkpoint.stats.tier == "remote"
    assert seen[-1] == len(BODY)
    fetching.result.result(30)


def test_a_file_that_is_there_needs_no_map(target: Path) -> None:
    target.write_bytes(BODY)
    with sl.open_arriving(target) as checkpoint:
        assert equal(checkpoint, "t2")
        assert checkpoint.stats.bytes_by_tier["remote"] == 0
    with pytest.raises(errors.CheckpointNotFoundError):
        sl.open_arriving(target.with_name("none"))
    with pytest.raises(errors.CheckpointNotFoundError):
        sl.open(target.with_name("none"))


def test_a_folder_of_shards_arrives(disk: Path, begin: Begin) -> None:
    names = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    bodies = {file: save({tensor: TENSORS["t0"]}) for tensor, file in names.items()}
    (disk / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with ExitStack() as stack:
        stores = {
            file: stack.enter_context(served(ObjectStore(body))) for file, body in bodies.items()
        }
        first = begin(stores["m-1.safetensors"], disk / "m-1.safetensors", 1)
        with pytest.raises(errors.ShardMissingError):
            sl.open_arriving(disk)
        second = begin(stores["m-2.safetensors"], disk / "m-2.safetensors", 1)
        with sl.open_arriving(disk) as checkpoint:
            second.go_on()
            second.result.result(30)
            assert np.array_equal(checkpoint.numpy("b"), TENSORS["t0"])
            first.go_on()
            assert np.array_equal(checkpoint.numpy("a"), TENSORS["t0"])
        first.result.result(30)


@pytest.mark.parametrize("source", ["auto", "pread"])
def test_a_rank_waits_for_its_rows_alone(
    store: ObjectStore, target: Path, threads: ThreadPoolExecutor, begin: Begin, source: SourceName
) -> None:
    """The last chunk never comes, and holds rows of the other ranks alone."""
    plan = sl.Plan((("t3", rows()), ("*", None)))
    fetching = begin(store, target, 4)  # header, t0 to t2 and almost all of t3 are there
    with sl.open_arriving(target) as checkpoint:
        part = threads.submit(checkpoint.load_shard, plan, 0, 2, source=source).result(30)
        assert np.array_equal(part["t0"].numpy(), TENSORS["t0"])
        assert np.array_equal(part["t3"].numpy(), TENSORS["t3"][: CHUNK // 2])
        other = threads.submit(checkpoint.load_shard, plan, 1, 2, source=source)
        assert not other.done()
        fetching.go_on()
        assert np.array_equal(other.result(30)["t3"].numpy(), TENSORS["t3"][CHUNK // 2 :])
    fetching.result.result(30)


def test_packed_columns_wait_for_their_chunks(
    disk: Path, threads: ThreadPoolExecutor, begin: Begin
) -> None:
    matrix = np.arange(6 * CHUNK // 4, dtype=np.int32).reshape(64, -1)  # 64 rows, 6 chunks
    body = save({"m": matrix})
    with served(ObjectStore(body)) as store:
        fetching = begin(store, disk / "m.safetensors", 5)
        with sl.open_arriving(disk / "m.safetensors") as checkpoint:
            plan = sl.Plan((("m", columns()),))
            waiting = threads.submit(checkpoint.load_shard, plan, 1, 2)
            assert not waiting.done()
            fetching.go_on()
            half = matrix.shape[1] // 2
            assert np.array_equal(waiting.result(30)["m"].numpy(), matrix[:, half:])
        fetching.result.result(30)


def test_a_rank_that_waits_is_told_when_the_fetch_ends(
    store: ObjectStore, target: Path, threads: ThreadPoolExecutor, begin: Begin
) -> None:
    fetching = begin(store, target, 2)
    with sl.open_arriving(target) as checkpoint:
        wait = threads.submit(checkpoint.load_shard, sl.Plan((("*", rows()),)), 0, 2)
        fetching.end()
        with pytest.raises(errors.FetchAbandonedError):
            wait.result(30)


# --- nobody is left hanging ---------------------------------------------------------------------


def test_who_waits_is_told_when_the_fetch_ends(
    store: ObjectStore, target: Path, threads: ThreadPoolExecutor, begin: Begin
) -> None:
    fetching = begin(store, target, 2)
    with sl.open_arriving(target) as checkpoint:
        waits = [
            threads.submit(checkpoint.tensor, "t3"),
            threads.submit(checkpoint.numpy, "t3"),
            threads.submit(checkpoint.fused, ["t2", "t3"]),
            threads.submit(checkpoint.load),
        ]
        fetching.end()
        for wait in waits:
            with pytest.raises(errors.FetchAbandonedError):
                wait.result(30)
        assert equal(checkpoint, "t0"), "what had come is still there"
    with pytest.raises(errors.FetchAbandonedError):
        sl.open_arriving(target).load()
    # Whoever fetches again goes on, and so does who opens it again.
    again = threads.submit(sl.fetch, store.url, target)
    assert again.result(30).stats.resumed_bytes == 2 * CHUNK
    with sl.open_arriving(target) as checkpoint:
        assert equal(checkpoint, "t3")


def test_nothing_comes_for_too_long(store: ObjectStore, target: Path, begin: Begin) -> None:
    fetching = begin(store, target, 1)
    with sl.open_arriving(target, patience_s=0.3) as checkpoint:
        with pytest.raises(errors.WaitTimeoutError):
            checkpoint.tensor("t3")
        with pytest.raises(errors.WaitTimeoutError):
            checkpoint.populate()
    fetching.end()


def test_a_waiting_load_can_be_stopped(store: ObjectStore, target: Path, begin: Begin) -> None:
    fetching = begin(store, target, 1)

    class Enough(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if done >= CHUNK:
            raise Enough

    with sl.open_arriving(target) as checkpoint, pytest.raises(Enough):
        checkpoint.load(progress=progress)
    fetching.end()


def test_closing_ends_who_waits(
    store: ObjectStore, target: Path, begin: Begin, threads: ThreadPoolExecutor
) -> None:
    fetching = begin(store, target, 2)
    checkpoint = sl.open_arriving(target, patience_s=600)
    whole = sl.Plan((("*", None),))
    waits = [
        threads.submit(checkpoint.tensor, "t3"),
        threads.submit(checkpoint.numpy, "t3"),
        threads.submit(checkpoint.wait, ["t3"]),
        threads.submit(checkpoint.load),
        threads.submit(checkpoint.load, source="pread"),
        threads.submit(checkpoint.load_shard, whole, 0, 1),
        threads.submit(checkpoint.populate),
    ]
    had = checkpoint.numpy("t0")
    checkpoint.close()
    for wait in waits:
        with pytest.raises(errors.CheckpointClosedError):
            wait.result(30)
    assert np.array_equal(had, TENSORS["t0"])
    fetching.end()


WAITER = """
import sys, stoker_loader as sl
checkpoint = sl.open_arriving(sys.argv[1])
print("opened", flush=True)
checkpoint.tensor("t3")
"""


def test_ctrl_c_ends_a_wait(store: ObjectStore, target: Path, begin: Begin) -> None:
    fetching = begin(store, target, 1)
    with subprocess.Popen(
        [sys.executable, "-c", WAITER, str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "opened\n"
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    fetching.end()


FETCHER = """
import sys, stoker_loader as sl
sl.fetch(sys.argv[1], sys.argv[2], limits=sl.FetchLimits(streams=1, stall_s=600, hedge_after_s=600))
"""


def test_who_waits_for_a_process_that_was_killed_is_told(
    store: ObjectStore, target: Path, threads: ThreadPoolExecutor
) -> None:
    stall = Stalls(store, CHUNK)
    store.faults.append(stall)
    command = [sys.executable, "-c", FETCHER, store.url, str(target)]
    with subprocess.Popen(command) as child, ExitStack() as stack:
        stack.callback(child.kill)
        assert stall.reached.wait(30)
        with sl.open_arriving(target) as checkpoint:
            waiting = threads.submit(checkpoint.tensor, "t3")
            child.kill()
            with pytest.raises(errors.FetchAbandonedError):
                waiting.result(30)


# --- nothing unverified is seen -----------------------------------------------------------------


def test_wrong_bytes_are_never_seen(disk: Path, threads: ThreadPoolExecutor) -> None:
    right = disk / "right.safetensors"
    save_file(TENSORS, right)
    (expected,) = sl.digest(right).files
    place = 2 * CHUNK + 77
    wrong = BODY[:place] + bytes([BODY[place] ^ 1]) + BODY[place + 1 :]
    target = disk / "model.safetensors"
    with served(ObjectStore(wrong)) as store, ExitStack() as stack:
        stall = Stalls(store, CHUNK)
        stack.callback(stall.release)
        store.faults.append(stall)
        fetch = threads.submit(sl.fetch, store.url, target, expected=expected, limits=ONE)
        assert stall.reached.wait(30)
        with sl.open_arriving(target) as checkpoint:
            waiting = threads.submit(checkpoint.numpy, "t2")
            stall.release()
            with pytest.raises(errors.FetchAbandonedError):
                waiting.result(30)
            with pytest.raises(errors.ChunkMismatchError):
                fetch.result(30)
            assert equal(checkpoint, "t0")


def test_another_object_under_the_same_name_is_not_mixed_in(
    store: ObjectStore, target: Path, begin: Begin
) -> None:
    fetching = begin(store, target, 2)
    with sl.open_arriving(target) as checkpoint:
        assert equal(checkpoint, "t0")
        fetching.end()
        other = save(dict.fromkeys(TENSORS, TENSORS["t3"]))
        with served(ObjectStore(other, '"two"')) as second:
            sl.fetch(second.url, target)
        assert equal(checkpoint, "t0"), "what was open stays what it was"
        with pytest.raises(errors.FetchAbandonedError):
            checkpoint.numpy("t3")
    with sl.open_arriving(target) as checkpoint:
        assert np.array_equal(checkpoint.numpy("t0"), TENSORS["t3"])


def test_a_device_gets_what_has_arrived_and_waits_for_the_rest(
    begin: Begin, store: ObjectStore, target: Path, tmp_path: Path
) -> None:
    fetching = begin(store, target, 2)
    begun = monotonic()
    there = BODY[: 2 * CHUNK]

    def watch(done: int, total: int) -> None:
        if stand_in.read(place[1], len(there)) == there:  # and the third is waited for
            fetching.go_on()
        assert monotonic() - begun < 60, "nothing is copied before all is there"

    with (
        StandIn(build(), tmp_path, 1, "eager", 0) as stand_in,
        sl.open_arriving(target) as checkpoint,
    ):
        native = checkpoint._native
        assert native is not None
        place = (0, stand_in.allocate(0, len(BODY)))
        _native.copy_to_devices(native, [0], [(0, 0, len(BODY), [place])], watch, 1, stand_in.path)
        assert stand_in.read(place[1], len(BODY)) == BODY
        assert stand_in.misuse() == (0, "")
