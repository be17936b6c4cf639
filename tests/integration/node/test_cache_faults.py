"""The worst that can happen to a node's cache: its agent is killed, its disk full or read-only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from starlette.types import Receive, Scope, Send

import stoker_loader
from integration.node.conftest import Make, Model, Remote, brought, opened
from integration.node.killed_agent import LOCATION
from stoker.checkpoints.records import read_record
from stoker.errors import StorageFull
from stoker.store.base import StorageReadOnly
from stoker_loader.fetching import FetchLimits
from support.object_store import Asked

KILLS = 100
CHUNKS = 12
AFTERWARDS_S = 0.04  # in which a fetch syncs, renames and is recorded
STREAMS = FetchLimits().streams


class Killer:
    """Kills a process when so many ranges were asked for, or so long after."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.ranges_left = 0
        self.asked = 0

    async def __call__(self, asked: Asked, _scope: Scope, _receive: Receive, _send: Send) -> bool:
        if asked.last > 0:
            self.asked += 1
            self.ranges_left -= 1
            if self.ranges_left == 0 and self.pid is not None:
                kill(self.pid)
        return False


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # it was faster
        os.kill(pid, signal.SIGKILL)


@contextmanager
def agents(root: Path, location: str) -> Iterator[subprocess.Popen[str]]:
    """What forks the processes to be killed."""
    program = Path(__file__).with_name("killed_agent.py")
    with subprocess.Popen(
        [sys.executable, program, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forking:
        assert forking.stdin is not None
        forking.stdin.write(location + "\n")
        forking.stdin.flush()
        yield forking
        forking.stdin.close()


def check(folder: Path, model: Model) -> bool:
    """Nothing that has its name is anything but what it should be; whether all of it is there."""
    for name, store in model.stores.items():
        if (folder / name).exists():
            assert (folder / name).read_bytes() == store.body
    record = read_record(folder.with_suffix(".json"))
    if record is not None:
        assert stoker_loader.digest(folder) == model.content.digest == record.digest
    return record is not None


async def test_an_agent_that_is_killed_at_any_step_loses_little_and_serves_nothing_wrong(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    random = Random(20261123)
    model = make(1, CHUNKS)
    killer = Killer()
    model.weights.faults.append(killer)
    root = tmp_path / "cache"
    folder = root / model.digest.removeprefix("blake3:")
    location = LOCATION.dump_json(await remote.locate(model.digest)).decode()
    killed, whole, kills_of_this = 0, 0, 0
    with agents(root, location) as forking:
        assert forking.stdin is not None
        assert forking.stdout is not None
        while killed < KILLS:
            timer: threading.Timer | None = None
            killer.pid = None
            killer.ranges_left = random.randrange(1, CHUNKS)
            forking.stdin.write("another\n")
            forking.stdin.flush()
            pid = int(forking.stdout.readline())
            if random.random() < 0.3:  # towards the end, or behind it
                killer.ranges_left = 0
                timer = threading.Timer(random.uniform(0, 4 * AFTERWARDS_S), kill, (pid,))
                timer.start()
            killer.pid = pid
            status = int(forking.stdout.readline())
            killer.pid = None
            if timer is not None:
                timer.cancel()
                timer.join()
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            kills_of_this += status != 0
            if check(folder, model):
                whole += 1
                assert killer.asked <= CHUNKS + kills_of_this * STREAMS, "it began again"
                assert sorted(path.name for path in folder.iterdir()) == sorted(model.stores)
                shutil.rmtree(root)
                killer.asked, kills_of_this = 0, 0
            else:
                assert status != 0
    assert whole > 5
    async with opened(root, remote) as cache:
        path, _ = await brought(cache, model)
    assert sorted(path.name for path in path.iterdir()) == sorted(model.stores)
    assert len(list(root.iterdir())) == 2, "the folder and its record"


async def test_a_full_disk_is_freed_of_what_nobody_holds(
    small_disk: Path, remote: Remote, make: Make
) -> None:
    one, two, three = (make(number, weights_bytes=900_000) for number in (1, 2, 3))
    async with opened(small_disk / "cache", remote) as cache:
        await brought(cache, one)
        await brought(cache, two)
        await brought(cache, three)
        found = [await cache.find(model.digest) for model in (one, two, three)]
        assert found.count(None) == 1
        assert found[2] is not None
        missing = one if found[0] is None else two
        there = two if found[0] is None else one
        async with cache.hold(there.digest), cache.hold(three.digest):
            with pytest.raises(StorageFull, match="is full"):
                await brought(cache, missing)
        await brought(cache, missing)


async def test_a_disk_that_became_read_only_is_named_and_costs_no_copy(
    small_disk: Path, remount_read_only: Callable[[Path], None], remote: Remote, make: Make
) -> None:
    one, two = (make(number, weights_bytes=900_000) for number in (1, 2))
    async with opened(small_disk / "cache", remote) as cache:
        await brought(cache, one)
        remount_read_only(small_disk)
        with pytest.raises(StorageReadOnly, match=str(small_disk)):
            await brought(cache, two)
        assert await brought(cache, one)
