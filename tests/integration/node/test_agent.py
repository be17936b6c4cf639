"""The agent with real worker processes: what it reports is what is so."""

from __future__ import annotations

import os
import signal
from contextlib import aclosing
from pathlib import Path

import httpx
import psutil
import pytest

from stoker.domain import Digest, InstanceId
from stoker.errors import InstanceNotFound
from stoker.node.wire import Exited, NodeState, Started
from stoker_runtime.contract import INVOKE_EVENT, ValueEvent
from support.agents import run_agent
from support.handlers import DIES, FAILS_IN_SETUP


async def invoke(started: Started, payload: object) -> list[object]:
    transport = httpx.AsyncHTTPTransport(uds=str(started.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        answer = await client.post("/invoke", json={"request_id": "r", "payload": payload})
        events = [INVOKE_EVENT.validate_json(line) for line in answer.text.splitlines()]
        return [e.value for e in events if isinstance(e, ValueEvent)]


async def test_a_start_claims_a_blank_worker_and_the_pool_is_refilled(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=1) as running:
        await running.pool_full(1)
        running.start("i1")
        started = await running.next(Started)
        assert started.provisioned == "claim"
        assert [p.name.value for p in started.phases] == ["provision", "fetch", "load", "init"]
        assert await invoke(started, {"a": 1}) == [{"a": 1}]
        await running.pool_full(1)


async def test_without_a_warm_pool_a_worker_is_spawned(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1")
        started = await running.next(Started)
        assert started.provisioned == "spawn"


async def test_a_stopped_instance_is_gone_with_its_process(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1")
        started = await running.next(Started)
        running.agent.stop(InstanceId("i1"))
        running.agent.stop(InstanceId("i1"))  # asking twice is fine
        exited = await running.next(Exited)
        assert exited.error is None
        assert not psutil.pid_exists(started.pid)
        assert not started.socket.exists()
        with pytest.raises(InstanceNotFound):
            running.agent.stop(InstanceId("i1"))


async def test_a_killed_instance_is_reported_with_its_log(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start(
            "i1", "def setup():\n    print('hello from setup')\ndef predict(p):\n    return p\n"
        )
        started = await running.next(Started)
        os.kill(started.pid, signal.SIGKILL)
        exited = await running.next(Exited)
        assert exited.error is not None
        assert exited.error.code == "instance_lost"
        assert "signal 9" in exited.error.message
        assert not exited.permanent
        assert any("hello from setup" in line for line in exited.log_tail)


async def test_a_setup_that_raises_is_refused_for_good(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1", FAILS_IN_SETUP)
        exited = await running.next(Exited)
        assert exited.permanent
        assert exited.error is not None
        assert "flux capacitor missing" in exited.error.message
        assert any("about to look" in line for line in exited.log_tail)


async def test_a_handler_that_ends_its_process_is_an_instance_lost(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1", DIES)
        started = await running.next(Started)
        with pytest.raises(httpx.TransportError):
            await invoke(started, None)
        exited = await running.next(Exited)
        assert exited.error is not None
        assert exited.error.code == "instance_lost"
        assert any("last words" in line for line in exited.log_tail)


async def test_a_missing_artifact_is_refused_for_good(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1", checkpoint=Digest("blake3:unknown"))
        exited = await running.next(Exited)
        assert exited.permanent
        assert exited.error is not None
        assert exited.error.code == "checkpoint_not_found"


async def test_a_start_can_be_stopped_while_its_worker_is_spawned(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1")
        running.agent.stop(InstanceId("i1"))
        exited = await running.next(Exited)
        assert exited.error is None


async def test_the_death_of_a_blank_worker_is_made_good(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=1) as running:
        await running.pool_full(1)
        children = psutil.Process().children()
        blank = next(c for c in children if "stoker_runtime" in " ".join(c.cmdline()))
        blank.send_signal(signal.SIGKILL)
        while (await running.next(NodeState)).blank_workers:
            pass
        await running.pool_full(1)


async def test_logs_are_followed_until_the_instance_ends_and_kept_after_it(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=0) as running:
        running.start("i1", "def predict(p):\n    print('line', p, flush=True)\n    return p\n")
        started = await running.next(Started)
        async with aclosing(running.agent.logs(InstanceId("i1"), follow=True)) as lines:
            await invoke(started, 1)
            async for line in lines:
                if line == "line 1":
                    break
            await invoke(started, 2)
            running.agent.stop(InstanceId("i1"))
            assert "line 2" in [line async for line in lines]
        await running.next(Exited)
        kept = [line async for line in running.agent.logs(InstanceId("i1"), follow=False)]
        assert {"line 1", "line 2"} <= set(kept)


@pytest.mark.skipif(os.geteuid() != 0, reason="lowering priority for a while needs root")
async def test_a_blank_worker_yields_until_it_is_claimed(tmp_path: Path) -> None:
    async with run_agent(tmp_path, warm_pool=1) as running:
        await running.pool_full(1)
        children = psutil.Process().children()
        blank = next(c for c in children if "stoker_runtime" in " ".join(c.cmdline()))
        assert blank.nice() == 19
        running.start("i1")
        started = await running.next(Started)
        assert started.pid == blank.pid
        threads = psutil.Process(blank.pid).threads()
        assert {os.getpriority(os.PRIO_PROCESS, t.id) for t in threads} == {0}
