"""A node's tiers together: what is pinned stays, what is locked is resident, what rots is found."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import stoker_loader
from integration.node.conftest import WEIGHTS, Make, Model, Remote, brought, opened
from stoker.checkpoints.faults import CHUNK_BYTES
from stoker.checkpoints.records import read_record, snapshot, write_record
from stoker.checkpoints.store import Signed
from stoker.domain import Digest, PhaseName, Tier
from stoker.errors import CheckpointInvalid, CheckpointNotFound, ShuttingDown, StorageFull
from stoker.listener import Listener, bind_unix
from stoker.node import tiers as tiers_module
from stoker.node.cache import CopyInUse
from stoker.node.client import NodeClient
from stoker.node.counters import Counters
from stoker.node.dram import Dram, lockable_bytes
from stoker.node.server import create_agent_app
from stoker.node.tiers import Tiers
from stoker.node.wire import CopyInfo, Keep, KeepList, MeasuredPhase
from stoker_loader.errors import StorageError

ROOM = 1 << 30
REMOTE = [MeasuredPhase(name=PhaseName.FETCH, duration_ms=1.0, tier=Tier.REMOTE)]
FROM_SSD = [MeasuredPhase(name=PhaseName.LOAD, duration_ms=1.0, tier=Tier.SSD)]
FROM_DRAM = [MeasuredPhase(name=PhaseName.LOAD, duration_ms=1.0, tier=Tier.DRAM)]


@asynccontextmanager
async def node(
    root: Path, remote: Remote, budget_bytes: int | None = None, dram_bytes: int = 0
) -> AsyncIterator[Tiers]:
    counters = Counters()
    async with (
        opened(root, remote, budget_bytes, counters=counters) as cache,
        asyncio.TaskGroup() as tasks,
    ):
        tiers = Tiers(cache, Dram(dram_bytes, counters), counters, tasks)
        yield tiers
        await tiers.close()


async def brought_and_loaded(tiers: Tiers, model: Model) -> Path:
    """As an instance does that then ends: it has loaded before all is on the disk for good."""
    async with tiers.hold(model.digest) as held:
        if held.arrival is not None:
            await asyncio.shield(held.arrival)
        tiers.loaded(model.digest, REMOTE)
        await settled()
        if held.kept is not None:
            await asyncio.shield(held.kept)
    return held.path


async def settled() -> None:
    """Until the tasks that were begun are done."""
    while others := [
        task
        for task in asyncio.all_tasks()
        if task.get_name().startswith(("lock ", "bring ")) and not task.done()
    ]:
        await asyncio.wait(others)


async def copy_of(tiers: Tiers, model: Model) -> CopyInfo | None:
    state = await tiers.state()
    return next((copy for copy in state.copies if copy.digest == model.digest), None)


def pinned(model: Model, tier: Tier = Tier.SSD) -> Keep:
    return Keep(digest=model.digest, bring=tier, pin=tier, why=("function chat",))


def resident_share(path: Path) -> float:
    found = stoker_loader.residency(path)
    return found.resident_bytes / found.checkpoint_bytes


# --- the SSD --------------------------------------------------------------------------------------


async def test_what_is_to_be_kept_is_brought_and_not_given_up_for_others(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    kept, other, third = make(1), make(2), make(3)
    budget_bytes = kept.size_bytes + other.size_bytes
    async with node(tmp_path, remote, budget_bytes) as tiers:
        await tiers.keep([pinned(kept)])
        await settled()
        for model in (other, third, other, third):
            await brought(tiers.cache, model)
        copy = await copy_of(tiers, kept)
        assert copy is not None, "the others were used more often"
        assert (copy.pinned, copy.why, copy.state) == (True, ("function chat",), "whole")
        with pytest.raises(CopyInUse, match="stoker cache unpin"):
            await tiers.evict(kept.digest)
        await brought(tiers.cache, other)
        await tiers.keep([pinned(kept), pinned(other)])
        with pytest.raises(StorageFull):
            await brought(tiers.cache, third)
        await tiers.keep([])
        await tiers.evict(kept.digest)
        assert await copy_of(tiers, kept) is None
        evictions = (await tiers.state()).counters.evictions
        assert {one.reason for one in evictions} == {"budget", "asked"}


async def test_what_is_only_to_be_brought_is_brought_once(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    wanted = Keep(digest=model.digest, bring=Tier.SSD, pin=None, why=("function chat",))
    async with node(tmp_path, remote) as tiers:
        await tiers.keep([wanted])
        await settled()
        assert await tiers.cache.find(model.digest)
        await tiers.evict(model.digest)
        await tiers.keep([wanted])
        await settled()
        assert await tiers.cache.find(model.digest) is None
        await tiers.keep([])
        await tiers.keep([wanted])
        await settled()
        assert await tiers.cache.find(model.digest), "it was asked for anew"


async def test_what_is_pinned_is_tried_again_until_it_is_there(
    tmp_path: Path, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers_module, "BRING_AGAIN_S", (0.0,))
    model = make(1)

    class Flaky(Remote):
        async def locate(self, digest: Digest) -> Signed:
            self.down = len(self.located) < 3
            return await super().locate(digest)

    flaky = Flaky(remote.models)
    async with node(tmp_path, flaky) as tiers:
        await tiers.keep([pinned(model)])
        await settled()
        assert await tiers.cache.find(model.digest)
    assert len(flaky.located) == 4


async def test_what_was_there_already_counts_as_no_use_when_it_is_kept(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote) as tiers:
        await brought(tiers.cache, model)
        before = await copy_of(tiers, model)
        for _ in range(3):
            await tiers.keep([pinned(model)])
            await settled()
        after = await copy_of(tiers, model)
        assert before is not None
        assert after is not None
        assert after.frequency == before.frequency
        assert before.value > 0


async def test_a_start_gives_up_nothing_that_was_pinned_before_it_is_told_so_again(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    # Of two that nobody has used since the start, the one that would go.
    kept, other = sorted((make(1), make(2)), key=lambda model: model.digest)
    async with node(tmp_path, remote) as tiers:
        await brought(tiers.cache, kept)
        await brought(tiers.cache, other)
        await tiers.keep([pinned(kept)])
    async with node(tmp_path, remote, budget_bytes=kept.size_bytes) as tiers:
        assert await tiers.cache.find(kept.digest)
        assert await tiers.cache.find(other.digest) is None
        await tiers.keep([])
    async with node(tmp_path, remote, budget_bytes=1) as tiers:
        assert await tiers.cache.find(kept.digest) is None


async def test_a_change_that_is_found_twice_at_once_is_mended_once(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    """While the first one waits for what has to let go of the files, others go on."""
    model = make(1)
    waits = asyncio.Event()

    async def dropping(_digest: Digest) -> None:
        if not waits.is_set():
            waits.set()
            await brought(tiers.cache, model)

    async with node(tmp_path, remote) as tiers:
        path, _ = await brought(tiers.cache, model)
        tiers.cache.when_dropping(dropping)
        (path / "config.json").chmod(0o600)
        (path / "config.json").write_text("{}")
        again, _ = await brought(tiers.cache, model)
        assert waits.is_set()
        assert again == path


async def test_a_node_that_closes_stops_what_it_brings(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    remote.down = True
    async with node(tmp_path, remote) as tiers:
        await tiers.keep([pinned(model)])
        await asyncio.sleep(0)
        await tiers.close()
        with pytest.raises(ShuttingDown):
            tiers.prefetch(model.digest)


# --- rot ------------------------------------------------------------------------------------------


def rot(path: Path) -> None:
    """Changes a byte and hides it from whoever looks at names, sizes and times alone, as a disk
    does that loses one."""
    facts = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(CHUNK_BYTES + 5)
        byte = file.read(1)[0]
        file.seek(CHUNK_BYTES + 5)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    record_path = path.parent.with_suffix(".json")
    record = read_record(record_path)
    assert record is not None
    write_record(record_path, replace(record, stats=snapshot(path.parent)))


async def test_a_copy_that_rots_at_rest_is_found_by_reading_it_and_brought_anew(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    seen: list[tuple[int, int]] = []
    root = tmp_path / "cache"
    async with node(root, remote) as tiers:
        path, _ = await brought(tiers.cache, model)
        await tiers.verify(model.digest, lambda done, total: seen.append((done, total)))
        assert seen[-1] == (model.size_bytes, model.size_bytes)
        async with tiers.hold(model.digest):
            rot(path / WEIGHTS)
            with pytest.raises(CheckpointInvalid) as caught:
                await tiers.verify(model.digest, lambda *_: None)
            assert caught.value.details["file"] == WEIGHTS
            assert caught.value.details["chunk"] == 1
        assert await tiers.cache.find(model.digest) is None
        with pytest.raises(CheckpointNotFound, match="no whole copy"):
            await tiers.verify(model.digest, lambda *_: None)
    async with node(root, remote) as tiers:
        assert await tiers.cache.find(model.digest) is None, "nor after a start"
        _, size_bytes = await brought(tiers.cache, model)
        assert size_bytes == len(model.weights.body), "the rest was good"
        await tiers.verify(model.digest, lambda *_: None)


async def test_what_is_pinned_and_rots_is_brought_anew_at_once(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote) as tiers:
        await tiers.keep([pinned(model)])
        await settled()
        path = await tiers.cache.find(model.digest)
        assert path is not None
        rot(path / WEIGHTS)
        with pytest.raises(CheckpointInvalid):
            await tiers.verify(model.digest, lambda *_: None)
        await settled()
        await tiers.verify(model.digest, lambda *_: None)


async def test_a_sector_that_cannot_be_read_is_rot(
    tmp_path: Path, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loader says of one, since no disk here has any."""
    model = make(1)

    async def unreadable(path: Path, *_: object) -> None:
        raise StorageError("cannot read", file=str(path / WEIGHTS), errno=errno.EIO)

    async with node(tmp_path, remote) as tiers:
        await brought(tiers.cache, model)
        with monkeypatch.context() as patched:
            patched.setattr("stoker.node.verifying.aio.verify", unreadable)
            with pytest.raises(CheckpointInvalid, match="cannot read"):
                await tiers.verify(model.digest, lambda *_: None)
        assert await tiers.cache.find(model.digest) is None


# --- DRAM -----------------------------------------------------------------------------------------

needs_right_to_lock = pytest.mark.skipif(
    lockable_bytes(ROOM) < ROOM, reason="this process may not lock memory (RLIMIT_MEMLOCK)"
)


@needs_right_to_lock
async def test_what_was_loaded_stays_in_memory_within_the_budget(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    first, second = make(1), make(2)
    async with node(tmp_path, remote, dram_bytes=first.size_bytes + 1) as tiers:
        path = await brought_and_loaded(tiers, first)
        stoker_loader.evict(path)
        assert resident_share(path) == 1.0, "its pages are locked"
        copy = await copy_of(tiers, first)
        assert copy is not None
        assert copy.locked_bytes == copy.dram_bytes == first.size_bytes
        other = await brought_and_loaded(tiers, second)
        stoker_loader.evict(path)
        stoker_loader.evict(other)
        assert (resident_share(path), resident_share(other)) == (0.0, 1.0)
        (gone,) = (await tiers.state()).counters.evictions
        assert (gone.tier, gone.reason, gone.count) == ("dram", "budget", 1)


@needs_right_to_lock
async def test_what_an_instance_uses_or_somebody_pinned_is_never_unlocked(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    first, second = make(1), make(2)
    async with node(tmp_path, remote, dram_bytes=first.size_bytes + 1) as tiers:
        path = await brought_and_loaded(tiers, first)
        async with tiers.hold(first.digest):
            await brought_and_loaded(tiers, second)
            stoker_loader.evict(path)
            assert resident_share(path) == 1.0, "it is in use"
        await tiers.keep([pinned(first, Tier.DRAM)])
        await brought_and_loaded(tiers, second)
        stoker_loader.evict(path)
        assert resident_share(path) == 1.0, "it is pinned"
        await tiers.keep([])
        other = await brought_and_loaded(tiers, second)
        assert (await copy_of(tiers, second)).locked_bytes == second.size_bytes
        stoker_loader.evict(path)
        stoker_loader.evict(other)
        assert (resident_share(path), resident_share(other)) == (0.0, 1.0)


@needs_right_to_lock
async def test_what_is_pinned_in_memory_is_there_before_anybody_asks(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote, dram_bytes=ROOM) as tiers:
        await tiers.keep([pinned(model, Tier.DRAM)])
        await settled()
        path = await tiers.cache.find(model.digest)
        assert path is not None
        stoker_loader.evict(path)
        assert resident_share(path) == 1.0


async def test_what_is_no_longer_wanted_while_it_is_brought_to_memory_does_no_harm(
    tmp_path: Path, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(1)
    reading, goes_on = asyncio.Event(), asyncio.Event()

    async def prefetch(_path: Path) -> int:
        reading.set()
        await goes_on.wait()
        return 0

    monkeypatch.setattr("stoker.node.dram.aio.prefetch", prefetch)
    async with node(tmp_path, remote) as tiers:
        await tiers.keep([pinned(model, Tier.DRAM)])
        await reading.wait()
        await tiers.keep([])
        goes_on.set()
        await settled()
        assert await tiers.cache.find(model.digest)


@needs_right_to_lock
async def test_files_that_go_take_their_locked_pages_along(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote, dram_bytes=ROOM) as tiers:
        await brought_and_loaded(tiers, model)
        assert locked_kib() > model.size_bytes >> 11
        await tiers.evict(model.digest)
        assert locked_kib() == 0
        await brought_and_loaded(tiers, model)
        assert locked_kib() > model.size_bytes >> 11
    assert locked_kib() == 0, "the agent has ended"


def locked_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmLck:")).split()[1])


async def test_without_a_budget_nothing_is_locked_and_a_pin_brings_the_pages_in(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote) as tiers:
        path = await brought_and_loaded(tiers, model)
        stoker_loader.evict(path)
        assert resident_share(path) == 0.0
        await tiers.keep([pinned(model, Tier.DRAM)])
        await settled()
        assert resident_share(path) == 1.0
        assert (await copy_of(tiers, model)).locked_bytes == 0


def test_a_budget_beyond_the_limit_is_cut_to_what_may_be_locked() -> None:
    """In a process without the capability, whose soft limit is below its hard one."""
    program = """
import ctypes, os, resource, sys
from stoker.node.dram import lockable_bytes
soft, hard = 64 << 10, 1 << 20
resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
if os.geteuid() == 0:
    os.setuid(65534)  # with it go the capabilities
assert lockable_bytes(10 << 20) == hard, lockable_bytes(10 << 20)
assert lockable_bytes(1 << 10) == 1 << 10
assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == (hard, hard)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_limit_that_is_too_low_costs_the_lock_and_nothing_else(
    tmp_path: Path, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel says to a process that may not."""
    from stoker_loader import aio
    from stoker_loader.errors import PinRefusedError

    async def refused(path: object) -> None:
        raise PinRefusedError("it may not", file=str(path))

    monkeypatch.setattr(aio, "pin", refused)
    model = make(1)
    async with node(tmp_path, remote, dram_bytes=ROOM) as tiers:
        path = await brought_and_loaded(tiers, model)
        assert (await copy_of(tiers, model)).locked_bytes == 0
        assert await tiers.cache.find(model.digest) == path
    assert locked_kib() == 0


@needs_right_to_lock
async def test_the_one_that_is_used_most_is_not_unlocked_for_a_newcomer(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    often, once = make(1), make(2)
    async with node(tmp_path, remote, dram_bytes=often.size_bytes + 1) as tiers:
        for _ in range(3):
            path = await brought_and_loaded(tiers, often)
        await brought_and_loaded(tiers, once)
        stoker_loader.evict(path)
        assert resident_share(path) == 1.0


@needs_right_to_lock
async def test_what_others_put_in_place_of_locked_files_is_locked_instead(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote, dram_bytes=ROOM) as tiers:
        path = await brought_and_loaded(tiers, model)
        weights = path / WEIGHTS
        copied = weights.with_name("copied")
        copied.write_bytes(weights.read_bytes())
        copied.rename(weights)
        assert (await copy_of(tiers, model)).locked_bytes == 0, "they are of files that are gone"
        await brought_and_loaded(tiers, model)
        stoker_loader.evict(path)
        assert resident_share(path) == 1.0


# --- what is counted ------------------------------------------------------------------------------


async def test_hits_and_misses_say_which_tier_had_it(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path, remote) as tiers:
        await brought(tiers.cache, model)
        for phases in (REMOTE, FROM_SSD, FROM_SSD, FROM_DRAM):
            tiers.loaded(model.digest, phases)
        counters = (await tiers.state()).counters
        assert counters.hits == {"ssd": 2, "dram": 1}
        assert counters.misses == {"dram": 3, "ssd": 1}
        assert counters.fetched_bytes == {"bucket": model.size_bytes}


# --- over the wire --------------------------------------------------------------------------------


@asynccontextmanager
async def served(tiers: Tiers, root: Path) -> AsyncIterator[NodeClient]:
    """The routes of an agent's tiers; what they do not need of it is not there."""

    class Host:
        def __init__(self) -> None:
            self.tiers = tiers

    socket = root / "agent.sock"
    server = Listener(create_agent_app(Host()), bind_unix(socket), 1.0)
    serving = asyncio.create_task(server.run_until_stopped())
    await server.listening.wait()
    client = NodeClient(socket)
    yield client
    await client.close()
    server.stop()
    await serving


async def test_a_control_plane_keeps_verifies_and_sees_it_over_the_wire(
    tmp_path: Path, remote: Remote, make: Make
) -> None:
    model = make(1)
    async with node(tmp_path / "cache", remote) as tiers, served(tiers, tmp_path) as client:
        await client.keep(KeepList(keep=(pinned(model),)))
        await settled()
        (copy,) = (await client.cache()).copies
        assert (copy.digest, copy.pinned) == (model.digest, True)
        seen: list[int] = []
        await client.verify(model.digest, lambda done, _total: seen.append(done))
        assert seen[-1:] == [model.size_bytes]
        rot(tmp_path / "cache" / model.digest.removeprefix("blake3:") / WEIGHTS)
        with pytest.raises(CheckpointInvalid) as caught:
            await client.verify(model.digest, lambda *_: None)
        assert caught.value.details["chunk"] == 1
        with pytest.raises(CheckpointNotFound):
            await client.verify(Digest("blake3:" + "0" * 64), lambda *_: None)


async def test_a_reader_that_leaves_ends_the_verification(
    tmp_path: Path, remote: Remote, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(1)
    began, ended = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with node(tmp_path / "cache", remote) as tiers, served(tiers, tmp_path) as client:
        await brought(tiers.cache, model)
        monkeypatch.setattr("stoker.node.cache.verified", slow)
        asking = asyncio.create_task(client.verify(model.digest, lambda *_: None))
        await began.wait()
        asking.cancel()
        with pytest.raises((asyncio.CancelledError, httpx.TransportError)):
            await asking
        await ended.wait()
        assert await tiers.cache.find(model.digest), "it is as good as before"
