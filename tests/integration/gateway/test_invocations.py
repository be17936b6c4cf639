"""Any function with any JSON."""

from __future__ import annotations

import asyncio

import pytest

from integration.gateway.conftest import HOLD_S, Platform
from integration.gateway.peer import BOUND_S, Die, Hold, Peer, Raw, events_of, words
from stoker_runtime.contract import EmbedResponse, InvokeDone, InvokeFailed, ValueEvent, WorkerError

ECHO = "/v1/functions/echo/invocations"
END = InvokeDone(duration_ms=1.0)


def value(content: object, index: int = 0, *, stream: bool = False) -> ValueEvent:
    return ValueEvent(index=index, value=content, stream=stream)


@pytest.mark.parametrize("path", [ECHO, "/function/echo"])
@pytest.mark.parametrize("payload", [{"a": [1, None]}, [1], "text", 5, None, True])
async def test_a_single_value_is_the_body(platform: Platform, path: str, payload: object) -> None:
    platform.peer.will([[value(payload), END]])
    response = await platform.http.post(path, json=payload)
    assert response.status_code == 200
    assert response.json() == payload
    assert platform.peer.requests[0].payload == payload
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-function-revision"] == "echo-00001"
    assert "prefill;dur=" in response.headers["server-timing"]


async def test_an_empty_body_is_null(platform: Platform) -> None:
    platform.peer.will([[value("yes"), END]])
    assert (await platform.http.post(ECHO)).json() == "yes"
    assert platform.peer.requests[0].payload is None


async def test_integers_of_any_size_come_back(platform: Platform) -> None:
    platform.peer.will([Raw(b'{"kind":"value","index":0,"value":%d}\n' % 2**80), END])
    assert (await platform.http.post(ECHO, json={})).json() == 2**80


async def test_a_generators_values_are_events(platform: Platform) -> None:
    values = [value({"n": n}, n, stream=True) for n in range(3)]
    platform.peer.will([values[0], values[1:], END])
    response = await platform.http.post(ECHO, json={})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events_of(response.text) == [{"n": 0}, {"n": 1}, {"n": 2}, "[DONE]"]


async def test_a_generator_that_yields_nothing_just_ends(platform: Platform) -> None:
    platform.peer.will([END])
    assert events_of((await platform.http.post(ECHO, json={})).text) == ["[DONE]"]


@pytest.mark.parametrize("platform", [{"hold_s": HOLD_S, "ping_s": HOLD_S}], indirect=True)
async def test_who_accepts_events_gets_them_and_pings_meanwhile(platform: Platform) -> None:
    hold = Hold()
    platform.peer.will([hold, [value("late"), END]])
    headers = {"accept": "text/event-stream"}
    async with platform.http.stream("POST", ECHO, json={}, headers=headers) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == ": ping"
        hold.released.set()
        data = [line async for line in lines if line.startswith("data: ")]
    assert data == ['data: "late"', "data: [DONE]"]


FAILURE = InvokeFailed(
    error=WorkerError(
        type="handler_error",
        code="handler_error",
        message="ZeroDivisionError: division by zero",
        details={"type": "ZeroDivisionError"},
    )
)


async def test_a_handler_that_raises_is_a_500_and_lives_on(platform: Platform) -> None:
    platform.peer.will([FAILURE])
    platform.peer.will([[value(1), END]])
    response = await platform.http.post(ECHO, json={})
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "function_failed"
    assert error["message"] == "ZeroDivisionError: division by zero"
    assert error["details"]["type"] == "ZeroDivisionError"
    assert platform.leasing.suspected == []
    assert (await platform.http.post(ECHO, json={})).json() == 1


async def test_a_generator_that_raises_later_ends_with_an_error_event(platform: Platform) -> None:
    platform.peer.will([value(1, stream=True), FAILURE])
    events = events_of((await platform.http.post(ECHO, json={})).text)
    assert events[0] == 1
    assert events[1]["error"]["code"] == "function_failed"
    assert len(events) == 2


async def test_a_handler_is_not_run_twice(platform: Platform) -> None:
    other = Peer(platform.peer.socket.with_name("b.sock"))
    platform.leasing.add("instance-b", other)
    platform.peer.will([Die()])
    response = await platform.http.post(ECHO, json={})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "instance_lost"
    assert other.requests == []


async def test_a_handler_that_never_began_runs_elsewhere(platform: Platform) -> None:
    nobody = Peer(platform.peer.socket.with_name("nobody.sock"))
    platform.leasing.peers = {"gone": nobody, **platform.leasing.peers}
    platform.peer.will([[value("here"), END]])
    assert (await platform.http.post(ECHO, json={})).json() == "here"
    assert platform.leasing.suspected == ["gone"]


async def test_a_client_that_leaves_cancels_its_handler(platform: Platform) -> None:
    hold = Hold()
    platform.peer.will([hold])
    leaving = asyncio.create_task(platform.http.post(ECHO, json={}))
    await asyncio.wait_for(hold.reached.wait(), BOUND_S)
    leaving.cancel()
    await asyncio.wait_for(platform.peer.client_left.wait(), BOUND_S)
    await asyncio.wait_for(platform.leasing.idle.wait(), BOUND_S)


async def test_models_are_invoked_by_prompt_messages_or_input(platform: Platform) -> None:
    platform.peer.will(words("a"))
    platform.peer.will(words("b"))
    platform.peer.will([EmbedResponse(embeddings=((1.0,),), prompt_tokens=1)])
    path = "/v1/functions/{}/invocations"
    completed = await platform.http.post(path.format("chat"), json={"prompt": "x"})
    messages = [{"role": "user", "content": "x"}]
    chatted = await platform.http.post(path.format("auto"), json={"messages": messages})
    embedded = await platform.http.post(path.format("embed"), json={"input": "x"})
    assert completed.json()["choices"][0]["text"] == "a"
    assert platform.peer.requests[0].sampling.max_tokens is None
    assert chatted.json()["choices"][0]["message"]["content"] == "b"
    assert embedded.json()["data"][0]["embedding"] == [1.0]
    for payload in ({"question": "x"}, [1], None):
        refused = await platform.http.post(path.format("chat"), json=payload)
        assert refused.status_code == 400
        assert '"messages"' in refused.json()["error"]["message"]


async def test_an_unknown_function_answers_in_the_data_planes_shape(platform: Platform) -> None:
    response = await platform.http.post("/v1/functions/nope/invocations", json={})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "function_not_found"
    metrics = (await platform.http.get("/metrics")).text
    assert "nope" not in metrics
