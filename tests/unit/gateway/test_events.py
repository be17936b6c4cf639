"""The way of events to one client: silences, stalls, and what ends the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stoker.domain import RequestId
from stoker.gateway import events
from stoker.gateway.call import Call
from stoker.gateway.disconnect import ClientLeft
from stoker.gateway.events import PING, Emit, EventStream

Message = dict[str, Any]
FOREVER_S = 3600.0


class Client:
    """Takes messages; `holds` may make one of them wait."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.pinged = asyncio.Event()
        self.holds: Callable[[Message], Awaitable[object]] | None = None

    async def take(self, message: Any) -> None:
        if self.holds is not None:
            await self.holds(message)
        self.got.append(message)
        if message.get("body") == PING:
            self.pinged.set()

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.got if "body" in message]


def stream(produce: Callable[[Emit], Awaitable[None]], **bounds: float) -> EventStream:
    call = Call(RequestId("req-1"), 0.0, "data")
    return EventStream(call, produce, **({"hold_s": FOREVER_S, "ping_s": FOREVER_S} | bounds))


def test_a_silence_is_filled_before_and_after_the_first_event() -> None:
    async def scenario() -> list[Message]:
        client = Client()

        async def produce(emit: Emit) -> None:
            await client.pinged.wait()  # while held
            await emit(b"one")
            client.pinged.clear()
            await client.pinged.wait()  # between two events
            await emit(b"two")

        await stream(produce, hold_s=0.001, ping_s=0.001).relay(client.take)
        return client.got

    got = asyncio.run(scenario())
    assert [message["type"] for message in got].count("http.response.start") == 1
    assert got[0]["type"] == "http.response.start"
    said = [m["body"] for m in got if m.get("body") not in (None, PING)]
    assert said == [b"one", b"two", b""]
    assert got[1]["body"] == PING
    assert not got[-1]["more_body"]


def test_no_ping_comes_between_the_status_line_and_its_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []
    look = events._Wire._look
    enough = asyncio.Event()

    def counted(wire: events._Wire) -> None:
        look(wire)
        looked.append(wire)
        if len(looked) == 3:  # many silences, were it one
            enough.set()

    monkeypatch.setattr(events._Wire, "_look", counted)

    async def scenario() -> list[Message]:
        client = Client()
        began, go_on = asyncio.Event(), asyncio.Event()

        async def hold_status(message: Message) -> None:
            if message["type"] == "http.response.start":
                began.set()
                await go_on.wait()

        client.holds = hold_status

        async def produce(emit: Emit) -> None:
            await emit(b"one")

        relayed = asyncio.create_task(
            stream(produce, hold_s=0.001, ping_s=0.001).relay(client.take)
        )
        await began.wait()
        await enough.wait()
        go_on.set()
        await relayed
        return client.got

    got = asyncio.run(scenario())
    assert got[0]["type"] == "http.response.start"
    assert got[1]["body"] == b"one"
    assert got[-1]["body"] == b""


def test_an_event_waits_for_a_ping_that_is_being_written() -> None:
    async def scenario() -> list[Message]:
        client = Client()
        pinging, go_on, emitting = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def hold_ping(message: Message) -> None:
            if message.get("body") == PING and not go_on.is_set():
                pinging.set()
                await go_on.wait()

        client.holds = hold_ping

        async def produce(emit: Emit) -> None:
            await pinging.wait()
            emitting.set()
            await emit(b"one")

        relayed = asyncio.create_task(stream(produce, hold_s=0.001).relay(client.take))
        await emitting.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert client.bodies == []
        go_on.set()
        await relayed
        return client.got

    got = asyncio.run(scenario())
    assert [m.get("body") for m in got] == [None, PING, b"one", b""]


@pytest.mark.parametrize("stalled", ["http.response.start", "http.response.body"])
def test_a_client_that_takes_nothing_is_given_up(
    stalled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STALL_S", 0.01)

    async def scenario() -> bool:
        client = Client()
        cancelled = False

        async def never(message: Message) -> None:
            if message["type"] == stalled:
                await asyncio.get_running_loop().create_future()

        client.holds = never

        async def produce(emit: Emit) -> None:
            nonlocal cancelled
            try:
                await emit(b"one")
            except asyncio.CancelledError:
                cancelled = True
                raise

        with pytest.raises(ClientLeft):
            await stream(produce, hold_s=0.005, ping_s=0.005).relay(client.take)
        return cancelled

    assert asyncio.run(scenario())


def test_a_client_that_stalls_in_a_ping_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "STALL_S", 0.01)

    async def scenario() -> None:
        client = Client()

        async def never(message: Message) -> None:
            await asyncio.get_running_loop().create_future()

        client.holds = never

        async def produce(emit: Emit) -> None:
            await asyncio.get_running_loop().create_future()

        with pytest.raises(ClientLeft):
            await stream(produce, hold_s=0.005, ping_s=0.005).relay(client.take)

    asyncio.run(scenario())


def test_a_timeout_of_the_work_is_not_taken_for_a_client_that_left() -> None:
    async def produce(emit: Emit) -> None:
        raise TimeoutError("the work's own")

    async def scenario() -> None:
        with pytest.raises(TimeoutError, match="the work's own"):
            await stream(produce).relay(Client().take)

    asyncio.run(scenario())


def test_what_fails_after_the_first_event_becomes_the_last() -> None:
    async def produce(emit: Emit) -> None:
        await emit(b"one")
        raise ZeroDivisionError

    async def scenario() -> list[bytes]:
        client = Client()
        with pytest.raises(ZeroDivisionError):
            await stream(produce).relay(client.take)
        return client.bodies

    first, last = asyncio.run(scenario())
    assert first == b"one"
    assert last.startswith(b'data: {"error":')
