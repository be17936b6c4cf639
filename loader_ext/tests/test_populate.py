"""Populating: progress, cancellation, and that other threads run meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

import stoker_loader as sl
from stoker_loader.errors import FileChangedError

ATTEMPTS = 100


def test_progress_rises_to_the_whole(large: Path) -> None:
    seen: list[tuple[int, int]] = []
    with sl.open(large) as checkpoint:
        checkpoint.populate(lambda done, total: seen.append((done, total)), threads=2)
        total = large.stat().st_size
        assert seen[-1] == (total, total)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        seen.clear()
        checkpoint.populate(lambda done, total: seen.append((done, total)))
        assert not seen  # the second time does nothing
        assert checkpoint.stats.populate_ms > 0
    assert sl.residency(large).resident_bytes == total


def test_what_the_callback_raises_ends_it(large: Path) -> None:
    sl.evict(large)
    error = RuntimeError("enough")

    def stop(done: int, total: int) -> None:
        raise error

    with sl.open(large) as checkpoint:
        with pytest.raises(RuntimeError, match="enough") as caught:
            checkpoint.populate(stop, threads=1)
        assert caught.value is error
        assert sl.residency(large).resident_bytes < large.stat().st_size
        checkpoint.populate()  # and it can be taken up again
    assert sl.residency(large).resident_bytes == large.stat().st_size


def interrupt_once(path: Path) -> None:
    """Populates while another thread sends SIGINT; returns when KeyboardInterrupt arrived."""
    started = threading.Event()

    def send() -> None:
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with sl.open(path) as checkpoint:
            started.set()
            checkpoint.populate(threads=1)
            sender.join()
            signal.sigtimedwait([], 5)  # not reached: the signal is pending by now
    except KeyboardInterrupt:
        sender.join()
        return
    raise AssertionError("the signal was lost")


def test_ctrl_c_stops_it_in_the_middle(large: Path) -> None:
    for _ in range(ATTEMPTS):
        sl.evict(large)
        interrupt_once(large)
        # Seldom the whole file is read before the other thread has sent its signal.
        if sl.residency(large).resident_bytes < large.stat().st_size:
            return
    raise AssertionError("populate never stopped in the middle")


def test_the_gil_is_released(large: Path) -> None:
    """Python never switches threads by itself here, so another runs only if we let it."""
    go, ran = threading.Event(), threading.Event()

    def other() -> None:
        go.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        for _ in range(ATTEMPTS):
            sl.evict(large)
            with sl.open(large) as checkpoint:
                # The native call alone: everything between these lines holds the GIL.
                native = checkpoint._native
                assert native is not None
                native.map()
                go.set()
                native.populate(None, 2)
                if ran.is_set():
                    break
        else:
            raise AssertionError("no other thread ran while the native call did")
    finally:
        sys.setswitchinterval(interval)
        go.set()
        thread.join()


def test_a_file_that_was_truncated_since_is_an_error(large: Path) -> None:
    with sl.open(large) as checkpoint:
        os.truncate(large, 1 << 20)
        with pytest.raises(FileChangedError, match="and has 1048576 now; open it again"):
            checkpoint.populate()


def test_many_threads_may_load_one_checkpoint(decoder: tuple[Path, dict]) -> None:
    results: list[int] = []
    with sl.open(decoder[0]) as checkpoint:
        threads = [
            threading.Thread(target=lambda: results.append(len(checkpoint.load())))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [len(decoder[1])] * 8
