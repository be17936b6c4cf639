"""What goes wrong while an answer is awaited or under way, and who notices."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import openai
import pytest

from integration.gateway.conftest import HOLD_S, Platform
from integration.gateway.peer import (
    BOUND_S,
    Die,
    Hold,
    Peer,
    Raw,
    Refuse,
    events_of,
    token,
    words,
)
from stoker.errors import CrashLoop, QueueFull, StartupTimeout
from stoker_runtime.contract import ErrorFrame, PromptFrame, WorkerError

HELLO = [{"role": "user", "content": "Hello?"}]
BODY = {"model": "chat", "messages": HELLO, "stream": True}
PROMPT = PromptFrame(epoch=0, prompt_ids=(1, 2))
SHORT = pytest.mark.parametrize("platform", [{"hold_s": HOLD_S, "ping_s": HOLD_S}], indirect=True)


async def within(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), BOUND_S)


# --- cold starts ----------------------------------------------------------------------------


async def test_a_cold_start_is_told_in_headers_and_timeline(platform: Platform) -> None:
    start = platform.leasing.starting = Hold()
    platform.peer.will(words("a"))
    asking = asyncio.create_task(platform.http.post("/v1/chat/completions", json=BODY))
    await within(start.reached)
    start.released.set()
    response = await asking
    assert response.headers["x-cold-start"] == "true"
    assert "load;dur=" in response.headers["server-timing"]
    assert 'desc="dram"' in response.headers["server-timing"]
    startup = (
        await platform.http.get(f"/v1/requests/{response.headers['x-request-id']}/startup")
    ).json()
    names = [phase["name"] for phase in startup["phases"]]
    assert names == ["queue", "schedule", "provision", "fetch", "load", "init", "prefill"]
    assert startup["cold"] is True
    total = sum(phase["duration_ms"] for phase in startup["phases"])
    assert total == pytest.approx(startup["total_ms"], rel=0.001, abs=0.01)
    ends = [phase["start_ms"] + phase["duration_ms"] for phase in startup["phases"]]
    starts = [phase["start_ms"] for phase in startup["phases"][1:]]
    assert ends[:-1] == pytest.approx(starts, abs=0.01), "phases are contiguous"
    assert startup["phases"][4]["bytes"] == 1000
    assert startup["phases"][-1]["predicted_ms"] == 5.0
    [(_, prefill_ms, prompt_tokens)] = platform.leasing.first_tokens
    assert (prefill_ms, prompt_tokens) == (
        pytest.approx(startup["phases"][-1]["duration_ms"], abs=0.01),
        3,
    )
    last = (await platform.http.get("/v1/functions/chat")).json()["last_startup"]
    assert last["request_id"] == startup["request_id"]


@SHORT
async def test_a_held_stream_sends_pings_and_then_answers(platform: Platform) -> None:
    start = platform.leasing.starting = Hold()
    platform.peer.will(words("a", "b"))
    async with platform.http.stream("POST", "/v1/chat/completions", json=BODY) as response:
        assert response.status_code == 200
        lines = response.aiter_lines()
        assert await anext(lines) == ": ping"
        start.released.set()
        rest = [line async for line in lines]
    assert rest[-2] == "data: [DONE]"
    assert not any("error" in line for line in rest)


@SHORT
async def test_the_openai_client_passes_over_pings(platform: Platform) -> None:
    hold = Hold()
    platform.peer.will([[PROMPT], hold, *words("a", "b")])
    stream = await platform.client.chat.completions.create(
        model="chat", messages=HELLO, stream=True
    )
    await within(hold.reached)
    hold.released.set()
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "ab"


@SHORT
async def test_a_start_that_fails_after_the_status_line_is_an_error_event(
    platform: Platform,
) -> None:
    hold = Hold()
    error = WorkerError(
        type="invalid_request_error", code="context_length_exceeded", message="too long"
    )
    platform.peer.will([[PROMPT], hold, ErrorFrame(epoch=0, error=error)])
    async with platform.http.stream("POST", "/v1/chat/completions", json=BODY) as response:
        hold.released.set()
        body = "".join([piece async for piece in response.aiter_text()])
    [event] = events_of(body)
    assert event["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("refusal", "status", "cold"),
    [
        (QueueFull("full", retry_after_s=1.2), 429, "false"),
        (StartupTimeout("slow", retry_after_s=3), 504, "true"),
        (CrashLoop("broken", retry_after_s=9, details={"log_tail": ["boom"]}), 503, "true"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_lease_keeps_its_status_and_says_when_to_retry(
    platform: Platform, refusal: QueueFull, status: int, cold: str, stream: bool
) -> None:
    platform.leasing.refusal = refusal
    response = await platform.http.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert response.status_code == status
    assert response.headers["retry-after"] == {429: "2", 504: "3", 503: "9"}[status]
    assert response.headers["x-cold-start"] == cold
    assert response.headers["x-function-revision"] == "chat-00001"
    assert "total;dur=" in response.headers["server-timing"]
    error = response.json()["error"]
    assert error["code"] == refusal.code
    assert error["details"] == refusal.details
    assert error["request_id"] == response.headers["x-request-id"]


async def test_the_openai_client_raises_the_right_classes(platform: Platform) -> None:
    platform.leasing.refusal = QueueFull("full", retry_after_s=1)
    with pytest.raises(openai.RateLimitError) as raised:
        await platform.client.chat.completions.create(model="chat", messages=HELLO, stream=True)
    assert raised.value.code == "queue_full"
    platform.leasing.refusal = StartupTimeout("slow")
    with pytest.raises(openai.InternalServerError) as timeout:
        await platform.client.chat.completions.create(model="chat", messages=HELLO)
    assert timeout.value.status_code == 504


async def test_a_request_may_bound_its_own_wait(platform: Platform) -> None:
    platform.peer.will(words("a"))
    headers = {"x-scale-up-timeout": "0"}
    await platform.http.post("/v1/chat/completions", json=BODY, headers=headers)
    assert platform.leasing.timeouts == [0.0]
    refused = await platform.http.post(
        "/v1/chat/completions", json=BODY, headers={"x-scale-up-timeout": "soon"}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "x-scale-up-timeout"


# --- clients that leave ---------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_a_cold_start_frees_its_place(
    platform: Platform, stream: bool
) -> None:
    start = platform.leasing.starting = Hold()
    body = {**BODY, "stream": stream}
    leaving = asyncio.create_task(platform.http.post("/v1/chat/completions", json=body))
    await within(start.reached)
    left = asyncio.Event()
    platform.leasing.on_idle = left.set
    leaving.cancel()
    await within(left)
    assert platform.leasing.waiting("chat") == 0
    assert platform.peer.requests == []
    start.released.set()
    platform.peer.will(words("b"))
    answer = await platform.client.chat.completions.create(model="chat", messages=HELLO)
    assert answer.choices[0].message.content == "b"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_a_generation_cancels_it(
    platform: Platform, stream: bool
) -> None:
    hold = Hold()
    platform.peer.will([[PROMPT, token(0, "a")], hold])
    body = {**BODY, "stream": stream}
    leaving = asyncio.create_task(platform.http.post("/v1/chat/completions", json=body))
    await within(hold.reached)
    leaving.cancel()
    await within(platform.peer.client_left)
    await within(platform.leasing.idle)
    assert len(platform.leasing.released) == 1
    assert platform.leasing.suspected == [], "the instance is well"


# --- instances that die ---------------------------------------------------------------------


async def test_death_in_mid_stream_is_an_error_event_without_done(platform: Platform) -> None:
    platform.peer.will([[PROMPT, token(0, "a")], Die()])
    response = await platform.http.post("/v1/chat/completions", json=BODY)
    events = events_of(response.text)
    assert response.status_code == 200
    assert events[-1]["error"]["code"] == "instance_lost"
    assert "[DONE]" not in events
    assert platform.leasing.suspected == ["instance-a"]
    assert len(platform.leasing.released) == 1
    metrics = (await platform.http.get("/metrics")).text
    assert 'stoker_requests_total{function="chat",status="502"} 1.0' in metrics


async def test_the_openai_client_raises_when_an_instance_dies(platform: Platform) -> None:
    platform.peer.will([[PROMPT, token(0, "a")], Die()])
    stream = await platform.client.chat.completions.create(
        model="chat", messages=HELLO, stream=True
    )
    with pytest.raises(openai.APIError, match="instance-a"):
        _ = [chunk async for chunk in stream]


async def test_a_stream_without_its_last_frame_is_a_loss(platform: Platform) -> None:
    platform.peer.will([[PROMPT, token(0, "a")]])
    response = await platform.http.post("/v1/chat/completions", json={**BODY, "stream": False})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "instance_lost"
    assert platform.leasing.suspected == ["instance-a"]


@pytest.mark.parametrize("died", [[[PROMPT], Die()], [Die()], [Raw(b"no frame\n")]])
async def test_death_before_the_first_token_is_made_good_by_another_instance(
    platform: Platform, sockets: Path, died: list[object]
) -> None:
    other = Peer(sockets / "b.sock")
    platform.leasing.add("instance-b", other)
    platform.peer.will(died)
    other.will(words("whole", epoch=1))
    async with other.listening():
        answer = await platform.client.chat.completions.create(model="chat", messages=HELLO)
    assert answer.choices[0].message.content == "whole"
    assert platform.leasing.suspected == ["instance-a"]
    assert [lease.instance_id for lease in platform.leasing.released] == [
        "instance-a",
        "instance-b",
    ]
    assert other.requests[0].epoch == 1, "frames of the first attempt would be stale"


async def test_a_second_death_is_answered(platform: Platform, sockets: Path) -> None:
    platform.leasing.add("instance-b", Peer(sockets / "nobody.sock"))
    platform.peer.will([Die()])
    response = await platform.http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "instance_lost"
    assert platform.leasing.suspected == ["instance-a", "instance-b"]
    request_id = response.headers["x-request-id"]
    startup = await platform.http.get(f"/v1/requests/{request_id}/startup")
    assert startup.status_code == 200, "a start that failed has a timeline too"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_runtimes_refusals_keep_what_they_say(platform: Platform, stream: bool) -> None:
    error = WorkerError(
        type="invalid_request_error",
        code="context_length_exceeded",
        message="the prompt has 9000 tokens, the context 2048",
        param="messages",
        details={"prompt_tokens": 9000, "context_tokens": 2048},
    )
    platform.peer.will([Refuse(400, error)])
    response = await platform.http.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert response.status_code == 400
    body = response.json()["error"]
    assert (body["code"], body["param"]) == ("context_length_exceeded", "messages")
    assert body["details"] == {"prompt_tokens": 9000, "context_tokens": 2048}
    assert platform.leasing.suspected == []


async def test_an_engine_of_another_kind_is_a_bad_request(platform: Platform) -> None:
    error = WorkerError(
        type="engine_error", code="wrong_engine", message="this instance embeds texts"
    )
    platform.peer.will([Refuse(409, error)])
    with pytest.raises(openai.BadRequestError, match="embeds texts"):
        await platform.client.chat.completions.create(model="auto", messages=HELLO)


async def test_an_error_frame_before_the_first_token_has_a_status(platform: Platform) -> None:
    error = WorkerError(type="engine_error", code="engine_failed", message="the engine broke")
    platform.peer.will([[PROMPT], ErrorFrame(epoch=0, error=error)])
    response = await platform.http.post("/v1/chat/completions", json=BODY)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_failed"


# --- connections and logs -------------------------------------------------------------------


async def test_one_connection_serves_request_after_request(platform: Platform) -> None:
    for _ in range(3):
        platform.peer.will(words("a", "b"))
        await platform.http.post("/v1/chat/completions", json=BODY)
    assert platform.peer.connections_made == 1
    assert len(platform.instances) == 1


async def test_what_users_send_is_never_logged(
    platform: Platform, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "the-quick-brown-secret"
    messages = [{"role": "user", "content": secret}]
    platform.peer.will(words(secret))
    platform.peer.will([Raw(f'{{"kind": "token", "text": "{secret}"}}\n'.encode())])
    for body in (
        {**BODY, "messages": messages},
        {**BODY, "messages": messages},
        {**BODY, "messages": [{"role": secret, "content": secret}]},
    ):
        await platform.http.post("/v1/chat/completions", json=body)
    printed = capsys.readouterr()
    logged = printed.out + printed.err + caplog.text
    assert "request" in logged
    assert secret not in logged


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_answered_in_shape_and_its_message_is_not_logged(
    platform: Platform, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    platform.leasing.refusal = RuntimeError("quotes-the-user")
    response = await platform.http.post("/v1/chat/completions", json={**BODY, "stream": stream})
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal_error"
    assert error["request_id"] == response.headers["x-request-id"]
    printed = capsys.readouterr().out
    assert "RuntimeError" in printed
    assert response.headers["x-request-id"] in printed
    assert "quotes-the-user" not in printed + response.text
