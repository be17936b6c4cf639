"""The surface for event loops: the loop goes on, and a cancelled task has stopped its work."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

import stoker_loader as sl
from stoker_loader import aio, errors
from stoker_loader.aio.threads import in_thread
from support.object_store import ObjectStore, Stalls, served

CHUNK = 8 << 20
TENSORS = {f"t{n}": np.full(CHUNK, n, np.uint8) for n in range(3)}
BODY = save(TENSORS)
SLOW = sl.FetchLimits(streams=1, stall_s=600, hedge_after_s=600)
PATIENCE_S = 30.0


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with served(ObjectStore(BODY)) as store:
        yield store


@pytest.fixture
def target(disk: Path) -> Path:
    return disk / "model.safetensors"


@asynccontextmanager
async def held_fetch(store: ObjectStore, target: Path) -> AsyncIterator[Stalls]:
    """A fetch in a task, held at its second chunk until the body ends or releases it."""
    stall, reached = Stalls(store, CHUNK), asyncio.Event()
    store.faults.append(stall)

    def report(done: int, total: int) -> None:
        if stall.reached.is_set():
            reached.set()

    fetch = asyncio.create_task(aio.fetch(store.url, target, limits=SLOW, progress=report))
    try:
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
        yield stall
    finally:
        stall.release()
        await fetch


# --- the loop goes on ---------------------------------------------------------------------------


async def test_the_loop_runs_while_a_load_waits(store: ObjectStore, target: Path) -> None:
    """What the load waits for is set free by its own loop: one that is blocked would never."""
    async with held_fetch(store, target) as stall:
        seen: list[int] = []

        def report(done: int, total: int) -> None:
            seen.append(done)
            stall.release()

        async with await aio.open_arriving(target, patience_s=PATIENCE_S) as checkpoint:
            tensors = await checkpoint.load(progress=report)
    assert seen[-1] == len(BODY)
    assert {name: tensor.numpy().tobytes() for name, tensor in tensors.items()} == {
        name: array.tobytes() for name, array in TENSORS.items()
    }


async def test_many_that_wait_hold_up_nobody(store: ObjectStore, target: Path) -> None:
    """More waits than any pool has threads, and then the fetch that ends them."""
    async with (
        held_fetch(store, target) as stall,
        await aio.open_arriving(target, patience_s=PATIENCE_S) as checkpoint,
    ):
        waits = [asyncio.create_task(checkpoint.numpy("t2")) for _ in range(64)]
        await aio.residency(target.with_name(target.name + ".part"))
        assert not any(wait.done() for wait in waits)
        stall.release()
        arrays = await asyncio.gather(*waits)
    assert all(np.array_equal(array, TENSORS["t2"]) for array in arrays)


async def test_every_call_gives_what_its_namesake_gives(
    decoder: tuple[Path, dict[str, torch.Tensor]], disk: Path
) -> None:
    directory, tensors = decoder
    laid = disk / "laid"
    report = await aio.layout(directory, laid)
    assert report.digest == await aio.digest(laid)
    await aio.verify(laid, report.digest)
    size = sum(path.stat().st_size for path in laid.iterdir())
    assert await aio.evict(laid) == sl.Residency(size, 0)
    assert await aio.prefetch(laid) == size
    assert await aio.residency(laid) == sl.Residency(size, size)
    converted = await aio.convert(directory, disk / "converted")
    assert converted.source_format == "safetensors"
    async with await aio.open(laid, verify=True) as checkpoint:
        await checkpoint.populate()
        for name, tensor in (await checkpoint.load()).items():
            assert torch.equal(tensor, tensors[name])
        name = checkpoint.names[0]
        assert torch.equal(await checkpoint.tensor(name), tensors[name])
        assert await checkpoint.fused([name]) is not None
        part = await checkpoint.load_shard(sl.Plan((("*", None),)), 0, 2)
        assert part.keys() == tensors.keys()
        assert checkpoint.stats.verified_bytes == checkpoint.stats.checkpoint_bytes
        assert checkpoint.metadata["stoker.layout"] == "1"
        if not torch.cuda.is_available():
            with pytest.raises(errors.DeviceUnavailableError):
                await checkpoint.load_replicas(["cuda:0"])
    with await aio.pin(laid) as pin:
        assert pin.pinned_bytes >= size
    assert (await aio.load_file(laid)).keys() == tensors.keys()
    assert (await aio.load_file(laid, backend="pread")).keys() == tensors.keys()
    with torch.device("meta"):
        module = torch.nn.Linear(64, 32)
    one = disk / "one.safetensors"
    one.write_bytes(
        save({"weight": np.ones((32, 64), np.float32), "bias": np.ones(32, np.float32)})
    )
    async with await aio.open(one) as checkpoint:
        await checkpoint.load_into(module)
    assert module.weight.sum() == 32 * 64


def test_its_parameters_are_those_of_its_namesakes() -> None:
    pairs = [(getattr(aio, name), getattr(sl, name)) for name in aio.__all__]
    for cls, namesake in pairs:
        if not inspect.isclass(cls):
            continue
        for name, method in inspect.getmembers(cls, inspect.iscoroutinefunction):
            if not name.startswith("_"):
                pairs.append((method, getattr(namesake, name)))
    pairs = [(one, other) for one, other in pairs if not inspect.isclass(one)]
    assert len(pairs) > 15
    for one, other in pairs:
        assert inspect.iscoroutinefunction(one)
        mine, its = inspect.signature(one), inspect.signature(other)
        assert mine.parameters == its.parameters, one


# --- progress -----------------------------------------------------------------------------------


async def test_progress_runs_in_the_loop_and_what_it_raises_is_raised(large: Path) -> None:
    where: set[threading.Thread] = set()

    def report(done: int, total: int) -> None:
        where.add(threading.current_thread())
        if done == total:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await aio.prefetch(large, report)
    assert where == {threading.current_thread()}


async def test_what_was_done_before_the_last_report_raised_is_discarded() -> None:
    """A pin, or an open checkpoint, that nobody gets must not be held by the traceback."""
    discarded: list[str] = []

    def call(watch: Callable[..., None]) -> str:
        watch("all is done")
        return "a result"

    def report(said: str) -> None:
        raise RuntimeError(said)

    with pytest.raises(RuntimeError, match="all is done"):
        await in_thread(call, report, discarded.append)
    assert discarded == ["a result"]


async def test_an_error_of_the_call_is_raised(disk: Path) -> None:
    with pytest.raises(errors.CheckpointNotFoundError):
        await aio.open(disk / "gone")


# --- cancellation -------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[object], times: int = 1) -> None:
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_fetch_has_stopped(store: ObjectStore, target: Path, times: int) -> None:
    stall, reached = Stalls(store, CHUNK), asyncio.Event()
    store.faults.append(stall)

    def report(done: int, total: int) -> None:
        if stall.reached.is_set():
            reached.set()

    fetch = asyncio.create_task(aio.fetch(store.url, target, limits=SLOW, progress=report))
    await asyncio.wait_for(reached.wait(), PATIENCE_S)
    await cancelled(fetch, times)
    # Nobody has it any more, at once: another fetch would be refused else.
    fetched = await aio.fetch(store.url, target)
    assert fetched.stats.resumed_bytes == CHUNK
    assert Path.read_bytes(target) == BODY


Begin = Callable[[aio.Checkpoint], "asyncio.Task[object]"]
WAITS: dict[str, Begin] = {
    "load": lambda checkpoint: asyncio.create_task(checkpoint.load()),
    "populate": lambda checkpoint: asyncio.create_task(checkpoint.populate()),
    "tensor": lambda checkpoint: asyncio.create_task(checkpoint.tensor("t2")),
    "load_shard": lambda checkpoint: asyncio.create_task(
        checkpoint.load_shard(sl.Plan((("*", None),)), 0, 1)
    ),
}


@pytest.mark.parametrize("name", WAITS)
async def test_a_cancelled_wait_has_stopped(store: ObjectStore, target: Path, name: str) -> None:
    async with (
        held_fetch(store, target),
        await aio.open_arriving(target, patience_s=600) as checkpoint,
    ):
        task = WAITS[name](checkpoint)
        await asyncio.sleep(0)
        await cancelled(task)
        assert checkpoint.metadata == {}, "the checkpoint is open as before"


async def test_a_cancelled_opening_has_stopped(store: ObjectStore, target: Path) -> None:
    stall = Stalls(store, 0)
    store.faults.append(stall)
    reached, waiting = asyncio.Event(), asyncio.Event()

    def report(done: int, total: int) -> None:
        if stall.reached.is_set():
            reached.set()

    fetch = asyncio.create_task(aio.fetch(store.url, target, limits=SLOW, progress=report))
    await asyncio.wait_for(reached.wait(), PATIENCE_S)
    opening = asyncio.create_task(
        aio.open_arriving(target, patience_s=600, progress=lambda *_: waiting.set())
    )
    await asyncio.wait_for(waiting.wait(), PATIENCE_S)
    await cancelled(opening)
    await cancelled(fetch)


async def test_what_was_done_all_the_same_is_discarded() -> None:
    """Cancelled when its thread can no longer be stopped, a call's result is given back."""
    begun, go = threading.Event(), threading.Event()
    discarded: list[str] = []

    def call(watch: object) -> str:
        begun.set()
        go.wait()
        return "a result"

    task = asyncio.create_task(in_thread(call, discard=discarded.append))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "it ends with its thread, not before"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert discarded == ["a result"]


async def test_an_error_beside_the_cancellation_is_its_cause() -> None:
    begun, go = threading.Event(), threading.Event()

    def call(watch: object) -> None:
        begun.set()
        go.wait()
        raise OSError("the disk")

    task = asyncio.create_task(in_thread(call))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert isinstance(raised.value.__cause__, OSError)


# --- Ctrl-C -------------------------------------------------------------------------------------

LOOP = """
import asyncio, sys
import stoker_loader as sl
from stoker_loader import aio

async def main():
    limits = sl.FetchLimits(streams=1, stall_s=600, hedge_after_s=600)
    said = []
    def report(done, total):
        if done and not said:
            said.append(print("waiting", flush=True))
    await aio.fetch(sys.argv[1], sys.argv[2], limits=limits, progress=report)

asyncio.run(main())
"""
LOAD = """
import sys, torch, stoker_loader as sl
said = []
def report(done, total):
    if not said:
        said.append(print("waiting", flush=True))
sl.open_arriving(sys.argv[2], patience_s=600).load(progress=report)
"""


def interrupt(program: str, store: ObjectStore, target: Path) -> None:
    command = [sys.executable, "-c", program, store.url, str(target)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr


def test_ctrl_c_ends_a_loop_and_its_fetch(store: ObjectStore, target: Path) -> None:
    stall = Stalls(store, CHUNK)
    store.faults.append(stall)
    interrupt(LOOP, store, target)
    assert sl.fetch(store.url, target).stats.resumed_bytes == CHUNK


async def test_ctrl_c_ends_a_load(store: ObjectStore, target: Path) -> None:
    async with held_fetch(store, target):
        await asyncio.to_thread(interrupt, LOAD, store, target)
