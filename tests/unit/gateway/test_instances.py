"""The pool of connections: one is used again, unless it may not be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.unit.gateway.test_bounds import lease
from tests.unit.gateway.test_connection import listening, request

from stoker.domain import RequestId
from stoker.errors import InstanceLost
from stoker.gateway import instances as module
from stoker.gateway.exchange import Invoke
from stoker.gateway.instances import Instances

EVENTS = b'{"kind":"value","index":0,"value":1}\n{"kind":"done","duration_ms":1.0}\n'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(EVENTS) + EVENTS


class Instance:
    """Answers each request with one value and the end; counts its connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.open = 0
        self.left = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                await request(reader)
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.open -= 1
            self.left.set()


@asynccontextmanager
async def instance_at(folder: Path) -> AsyncIterator[Instance]:
    instance = Instance()
    async with listening(lease("a", folder).socket, instance.handle):
        yield instance


async def ask(instances: Instances, folder: Path) -> None:
    async with instances.open(lease("a", folder), Invoke(RequestId("r"), None)) as reply:
        while await reply.read():
            pass


async def test_requests_after_each_other_share_a_connection(tmp_path: Path) -> None:
    async with instance_at(tmp_path) as instance:
        instances = Instances(set)
        for _ in range(5):
            await ask(instances, tmp_path)
        assert instance.connections == 1
        instances.close()
        await instance.left.wait()


async def test_requests_at_once_have_a_connection_each(tmp_path: Path) -> None:
    async with instance_at(tmp_path) as instance:
        instances = Instances(set)
        exchange = Invoke(RequestId("r"), None)
        async with (
            instances.open(lease("a", tmp_path), exchange) as one,
            instances.open(lease("a", tmp_path), exchange) as other,
        ):
            assert await one.read()
            assert await other.read()
        assert instance.connections == 2
        instances.close()


async def test_one_that_idled_for_too_long_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with instance_at(tmp_path) as instance:
        instances = Instances(set)
        await ask(instances, tmp_path)
        monkeypatch.setattr(module, "KEEPALIVE_S", 0.0)
        await ask(instances, tmp_path)
        assert instance.connections == 2
        await instance.left.wait()
        instances.close()


async def test_one_that_is_left_early_is_closed(tmp_path: Path) -> None:
    async with instance_at(tmp_path) as instance:
        instances = Instances(set)
        async with instances.open(lease("a", tmp_path), Invoke(RequestId("r"), None)):
            assert instance.left.is_set() is False  # nothing was read
        await instance.left.wait()
        await ask(instances, tmp_path)
        assert instance.connections == 2
        instances.close()


async def test_what_is_given_back_after_the_end_is_closed(tmp_path: Path) -> None:
    async with instance_at(tmp_path) as instance:
        instances = Instances(set)
        async with instances.open(lease("a", tmp_path), Invoke(RequestId("r"), None)) as reply:
            while await reply.read():
                pass
            instances.close()
        await instance.left.wait()
        assert instance.open == 0


async def test_an_instance_that_dies_while_idle_is_lost(tmp_path: Path) -> None:
    instances = Instances(set)
    async with listening(lease("a", tmp_path).socket, _one_answer):
        await ask(instances, tmp_path)
    with pytest.raises(InstanceLost, match="was lost"):
        await ask(instances, tmp_path)
    instances.close()


async def _one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(ANSWER)
