"""The dispatcher over the real wire: store, registration, agent's socket, worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from stoker.domain import (
    Artifact,
    Digest,
    FunctionName,
    PhaseName,
    RequestId,
    Resources,
    Revision,
    RevisionId,
    RuntimeSpec,
    ScalePolicy,
    StartupPolicy,
)
from stoker.errors import CrashLoop, FunctionNotFound, ShuttingDown, StartupFailed, StartupTimeout
from stoker.listener import Listener, bind_unix
from stoker.node.registration import Registration, keep_registered
from stoker.node.server import create_agent_app
from stoker.scheduler.dispatcher import Dispatcher
from stoker.scheduler.lease import Lease
from stoker.scheduler.nodes import NodeDirectory
from stoker.store.memory import MemoryStore
from stoker_runtime.contract import EngineName
from support.agents import RunningAgent, run_agent
from support.handlers import ECHO, FAILS_IN_SETUP, write_handler


@dataclass
class Platform:
    dispatcher: Dispatcher
    directory: NodeDirectory
    node: RunningAgent

    def revision(self, name: str, code: str = ECHO, **scale: float) -> Revision:
        digest = Digest(f"blake3:{name}")
        self.node.folders[digest] = write_handler(self.node.root / name, code)
        policy = replace(ScalePolicy(max=1, target=4, hard_limit=4, keep_alive_s=60), **scale)
        return Revision(
            id=RevisionId(f"{name}-00001"),
            function=FunctionName(name),
            number=1,
            created_at=0.0,
            content_digest=name,
            checkpoint=None,
            source=Artifact(digest, 100),
            runtime=RuntimeSpec(engine=EngineName.HANDLER, handler="handler.py"),
            resources=Resources(cpu=1, memory_bytes=1 << 30),
            scale=policy,
            startup=StartupPolicy(timeout_s=60.0, max_held=200),
            env={},
        )

    def lease(self, revision: Revision, request_id: str = "r", timeout_s: float | None = None):  # type: ignore[no-untyped-def]
        return self.dispatcher.lease(
            RequestId(request_id), revision, arrived_at=time.monotonic(), timeout_s=timeout_s
        )

    async def gone(self, revision: Revision) -> None:
        """Returns when no instance of the function is left."""
        while self.dispatcher.instances(revision.function):
            await self.dispatcher.changed()


@asynccontextmanager
async def run_platform(root: Path, warm_pool: int = 1) -> AsyncIterator[Platform]:
    store = MemoryStore()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        stack.push_async_callback(store.close)
        node = await stack.enter_async_context(run_agent(root, warm_pool))
        socket = root / "run" / "agent.sock"
        server = Listener(create_agent_app(node.agent), bind_unix(socket), 1.0)
        serving = tasks.create_task(server.run_until_stopped())
        await server.listening.wait()
        registration = Registration(node_id=node.agent.node_id, socket=socket)
        registered = tasks.create_task(keep_registered(store, registration))
        directory = NodeDirectory(store, tasks)
        dispatcher = Dispatcher(directory, tasks, clock=time.monotonic, wall_clock=time.time)
        following = tasks.create_task(dispatcher.run())
        await directory.warm()
        yield Platform(dispatcher, directory, node)
        dispatcher.close()
        following.cancel()
        registered.cancel()
        await asyncio.wait([following, registered])
        server.stop()
        await serving


def assert_contiguous(lease: Lease) -> None:
    at_ms = 0.0
    for phase in lease.phases:
        assert phase.start_ms == pytest.approx(at_ms, abs=0.01)
        at_ms += phase.duration_ms
    assert at_ms == pytest.approx((lease.granted_at - lease.arrived_at) * 1e3, abs=0.1)


async def test_a_cold_lease_carries_every_phase_and_a_warm_one_next_to_none(tmp_path: Path) -> None:
    async with run_platform(tmp_path) as platform:
        echo = platform.revision("echo")
        async with platform.lease(echo) as lease:
            assert lease.cold
            assert [p.name for p in lease.phases][:6] == [
                PhaseName.QUEUE,
                PhaseName.SCHEDULE,
                PhaseName.PROVISION,
                PhaseName.FETCH,
                PhaseName.LOAD,
                PhaseName.INIT,
            ]
            assert_contiguous(lease)
            async with platform.lease(echo) as second:
                assert not second.cold
                assert second.instance_id == lease.instance_id
                assert_contiguous(second)
        (status,) = platform.dispatcher.instances()
        assert (status.state, status.active) == ("ready", 0)
        assert status.idle_deadline_s is not None


async def test_a_herd_shares_the_starts_that_the_target_wants(tmp_path: Path) -> None:
    async with run_platform(tmp_path, warm_pool=2) as platform:
        echo = platform.revision("echo", max=2, target=10, hard_limit=10)
        started: set[str] = set()
        both = asyncio.Event()

        async def one(number: int) -> None:
            async with platform.lease(echo, f"r{number}") as lease:
                assert_contiguous(lease)
                started.add(lease.instance_id)
                if len(started) == 2:
                    both.set()
                await both.wait()  # so that the first instance cannot serve them all

        async with asyncio.TaskGroup() as herd:
            for number in range(40):
                herd.create_task(one(number))
        assert len(platform.dispatcher.instances()) == 2
        assert len(started) == 2


async def test_a_request_cancelled_while_cold_leaves_and_the_start_goes_on(tmp_path: Path) -> None:
    async with run_platform(tmp_path, warm_pool=0) as platform:
        echo = platform.revision("echo")

        async def hold() -> None:
            async with platform.lease(echo):
                raise AssertionError("it was cancelled before it could be granted")

        leaver = asyncio.create_task(hold())
        while not platform.dispatcher.waiting(echo.function):
            await platform.dispatcher.changed()
        leaver.cancel()
        await asyncio.wait([leaver])
        assert platform.dispatcher.waiting(echo.function) == 0
        async with platform.lease(echo) as lease:
            assert lease.instance_id == platform.dispatcher.instances()[0].id
        assert len(platform.dispatcher.instances()) == 1


async def test_a_killed_instance_is_replaced_for_the_next_request(tmp_path: Path) -> None:
    async with run_platform(tmp_path) as platform:
        echo = platform.revision("echo")
        async with platform.lease(echo) as lease:
            (status,) = platform.dispatcher.instances()
            assert status.pid is not None
            os.kill(status.pid, signal.SIGKILL)
            await platform.gone(echo)
        async with platform.lease(echo) as second:
            assert second.instance_id != lease.instance_id


async def test_a_setup_that_raises_fails_fast_and_then_opens_the_breaker(tmp_path: Path) -> None:
    async with run_platform(tmp_path) as platform:
        broken = platform.revision("broken", FAILS_IN_SETUP)
        for _ in range(2):
            with pytest.raises(StartupFailed, match="flux capacitor missing") as failed:
                async with platform.lease(broken):
                    pass
            assert any("about to look" in line for line in failed.value.details["log_tail"])
        with pytest.raises((CrashLoop, StartupFailed)):
            async with platform.lease(broken):
                pass
        with pytest.raises(CrashLoop, match="3 times in a row") as looped:
            async with platform.lease(broken):
                pass
        assert looped.value.retry_after_s is not None
        assert platform.dispatcher.instances() == ()


async def test_keep_alive_scales_to_zero_and_ends_the_process(tmp_path: Path) -> None:
    async with run_platform(tmp_path) as platform:
        echo = platform.revision("echo", keep_alive_s=0.05)
        async with platform.lease(echo):
            (status,) = platform.dispatcher.instances()
        await platform.gone(echo)
        assert status.pid is not None
        assert not psutil.pid_exists(status.pid)


async def test_scale_waits_for_what_was_asked_for(tmp_path: Path) -> None:
    async with run_platform(tmp_path) as platform:
        echo = platform.revision("echo", max=2)
        up = await platform.dispatcher.scale(echo, 2)
        assert (up.ready, up.starting) == (2, 0)
        down = await platform.dispatcher.scale(echo, 0)
        assert (down.ready, down.starting, down.draining) == (0, 0, 0)
        assert platform.dispatcher.instances() == ()
        with pytest.raises(StartupFailed):
            await platform.dispatcher.scale(platform.revision("broken", FAILS_IN_SETUP), 1)


async def test_a_start_slower_than_its_timeout_is_answered_in_time(tmp_path: Path) -> None:
    async with run_platform(tmp_path, warm_pool=0) as platform:
        with pytest.raises(StartupTimeout):
            async with platform.lease(platform.revision("echo"), timeout_s=0.05):
                pass


async def test_delete_and_shutdown_answer_those_who_wait(tmp_path: Path) -> None:
    async with run_platform(tmp_path, warm_pool=0) as platform:

        async def hold(name: str) -> None:
            async with platform.lease(platform.revision(name)):
                pass

        first = asyncio.create_task(hold("first"))
        second = asyncio.create_task(hold("second"))
        while not all(
            map(platform.dispatcher.waiting, (FunctionName("first"), FunctionName("second")))
        ):
            await platform.dispatcher.changed()
        await platform.dispatcher.deleted(FunctionName("first"))
        with pytest.raises(FunctionNotFound):
            await first
        platform.dispatcher.close()
        with pytest.raises(ShuttingDown):
            await second


async def test_logs_of_all_instances_come_as_one_stream(tmp_path: Path) -> None:
    async with run_platform(tmp_path) as platform:
        echo = platform.revision("echo", "print('module read', flush=True)\n" + ECHO)
        lines = platform.dispatcher.logs(echo.function, follow=True)
        async with platform.lease(echo) as lease:
            async for line in lines:
                if line == f"{lease.instance_id} module read":
                    break
        await lines.aclose()
        kept = [line async for line in platform.dispatcher.logs(echo.function, follow=False)]
        assert f"{lease.instance_id} module read" in kept


async def test_an_agent_that_is_away_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    """The wire breaks and comes back: what still runs is kept, what died meanwhile is noticed."""
    store = MemoryStore()
    socket = tmp_path / "agent.sock"
    async with run_agent(tmp_path, 1) as node, asyncio.TaskGroup() as tasks:

        async def listen() -> tuple[Listener, asyncio.Task[None]]:
            server = Listener(create_agent_app(node.agent), bind_unix(socket), 1.0)
            serving = tasks.create_task(server.run_until_stopped())
            await server.listening.wait()
            return server, serving

        server, serving = await listen()
        registration = Registration(node_id=node.agent.node_id, socket=socket)
        registered = tasks.create_task(keep_registered(store, registration))
        directory = NodeDirectory(store, tasks)
        dispatcher = Dispatcher(directory, tasks, clock=time.monotonic, wall_clock=time.time)
        following = tasks.create_task(dispatcher.run())
        await directory.warm()
        platform = Platform(dispatcher, directory, node)
        stays, dies = platform.revision("stays"), platform.revision("dies")
        await dispatcher.scale(stays, 1)
        await dispatcher.scale(dies, 1)
        server.stop()
        await serving
        (doomed,) = dispatcher.instances(dies.function)
        assert doomed.pid is not None
        os.kill(doomed.pid, signal.SIGKILL)
        server, serving = await listen()
        await platform.gone(dies)
        (kept,) = dispatcher.instances(stays.function)
        assert kept.state == "ready"
        async with platform.lease(stays) as lease:
            assert lease.instance_id == kept.id
        for task in (following, registered):
            task.cancel()
        await asyncio.wait([following, registered])
        dispatcher.close()
        server.stop()
        await serving
        await store.close()
