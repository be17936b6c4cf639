"""Chat completions through the unmodified `openai` client."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from integration.gateway.conftest import SEED, Platform
from integration.gateway.peer import MEASURED, events_of, token, words
from stoker_runtime.contract import DoneFrame, FinishReason, PromptFrame, TokenFrame, TokenLogprob

HELLO = [{"role": "user", "content": "Hello?"}]


async def test_an_answer_in_one_piece(platform: Platform) -> None:
    platform.peer.will(words("Hel", "lo", "!"))
    answer = await platform.client.chat.completions.create(model="chat", messages=HELLO)
    assert answer.choices[0].message.content == "Hello!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert answer.usage.total_tokens == 6
    assert answer.model == "chat"
    assert answer.model_extra["stoker"]["startup"]["cold"] is False
    assert answer.model_extra["stoker"]["generation"] == MEASURED


async def test_a_stream_by_the_synchronous_client(platform: Platform) -> None:
    platform.peer.will(words("Hel", "", "lo", reason="length"))

    def read() -> list[ChatCompletionChunk]:
        with (
            platform.sync_client as client,
            client.chat.completions.create(model="chat", messages=HELLO, stream=True) as stream,
        ):
            return list(stream)

    chunks = await asyncio.to_thread(read)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    startup = chunks[-1].model_extra["stoker"]["startup"]
    assert [phase["name"] for phase in startup["phases"]] == ["queue", "schedule", "prefill"]


async def test_usage_comes_in_a_last_chunk_without_choices(platform: Platform) -> None:
    platform.peer.will(words("a", "b"))
    stream = await platform.client.chat.completions.create(
        model="chat", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2
    assert chunks[-1].model_extra["stoker"]["startup"]["request_id"] in chunks[-1].id
    assert chunks[-1].model_extra["stoker"]["generation"] == MEASURED
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_the_stream_ends_with_done_and_says_what_it_is(platform: Platform) -> None:
    platform.peer.will(words("a"))
    body = {"model": "chat", "messages": HELLO, "stream": True}
    response = await platform.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events_of(response.text)[-1] == "[DONE]"
    assert response.headers["x-cold-start"] == "false"
    assert response.headers["x-function-revision"] == "chat-00001"
    assert "prefill;dur=" in response.headers["server-timing"]


async def test_every_sampling_parameter_reaches_the_instance(platform: Platform) -> None:
    platform.peer.will(words("a"))
    await platform.client.chat.completions.create(
        model="chat",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d", "name": "Dora"},
        ],
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        stop=["x", "y", "z", "v", "w"],
        seed=-1,
        n=1,
        user="somebody",
        tools=[],
        response_format={"type": "text"},
        metadata={"a": "b"},
        extra_body={"top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5},
    )
    request = platform.peer.requests[0]
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", "Be brief."),
        ("user", "ab"),
        ("assistant", "c"),
        ("user", "d"),
    ]
    assert request.messages[3].name == "Dora"
    assert request.sampling.model_dump() == {
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 5,
        "min_p": 0.125,
        "seed": 2**64 - 1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.5,
        "stop": ("x", "y", "z", "v", "w"),
        "ignore_eos": False,
        "max_tokens": 7,
        "logprobs": None,
    }


async def test_the_gateway_draws_a_seed_where_none_is_given(platform: Platform) -> None:
    platform.peer.will(words("a"))
    await platform.client.chat.completions.create(model="chat", messages=HELLO)
    assert platform.peer.requests[0].sampling.seed == SEED


async def test_log_probabilities(platform: Platform) -> None:
    frame = TokenFrame(
        epoch=0,
        index=0,
        token=7,
        text="é",
        logprob=-0.5,
        top_logprobs=(
            TokenLogprob(token=7, text="é", logprob=-0.5),
            TokenLogprob(token=8, text="e", logprob=-1.5),
        ),
    )
    end = DoneFrame(epoch=0, finish_reason=FinishReason.STOP, prompt_tokens=1, completion_tokens=1)
    platform.peer.will([[PromptFrame(epoch=0, prompt_ids=(1,)), frame, end]])
    answer = await platform.client.chat.completions.create(
        model="chat", messages=HELLO, logprobs=True, top_logprobs=2
    )
    assert platform.peer.requests[0].sampling.logprobs == 2
    content = answer.choices[0].logprobs.content[0]
    assert (content.token, content.logprob, content.bytes) == ("é", -0.5, [0xC3, 0xA9])
    assert [one.token for one in content.top_logprobs] == ["é", "e"]


async def test_text_held_back_until_the_end_is_not_lost(platform: Platform) -> None:
    end = DoneFrame(
        epoch=0,
        finish_reason=FinishReason.STOP,
        text=" STO",
        prompt_tokens=1,
        completion_tokens=2,
    )
    script = [[token(0, "a"), token(1, ""), end]]
    platform.peer.will(script)
    platform.peer.will(script)
    whole = await platform.client.chat.completions.create(model="chat", messages=HELLO)
    stream = await platform.client.chat.completions.create(
        model="chat", messages=HELLO, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert whole.choices[0].message.content == "".join(pieces) == "a STO"


@pytest.mark.parametrize(
    ("parameters", "param", "says"),
    [
        ({"temperature": 2.5}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "not supported"),
        ({"modalities": ["text", "audio"]}, "modalities", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": [""]}, "stop", "must not be empty"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a text is needed"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "messages[0].role", "'user'"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
            "messages[0]",
            "tool calls",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "x"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "x"},
                            {"type": "image_url", "image_url": {"url": "http://x"}},
                        ],
                    },
                ]
            },
            "messages[1].content[1]",
            "'image_url' are not supported",
        ),
    ],
)
async def test_bad_parameters_are_named(
    platform: Platform, parameters: dict[str, object], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await platform.client.chat.completions.create(
            model="chat", messages=HELLO, extra_body=parameters
        )
    assert raised.value.param == param
    assert says in raised.value.message
    assert raised.value.type == "invalid_request_error"
    assert platform.leasing.timeouts == [], "a bad request wakes nobody"


async def test_an_unknown_function_is_not_found(platform: Platform) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        await platform.client.chat.completions.create(model="chaat", messages=HELLO)
    assert raised.value.code == "function_not_found"
    assert raised.value.param == "model"
    assert "did you mean 'chat'" in raised.value.message


@pytest.mark.parametrize(
    ("name", "says"),
    [("embed", "/v1/embeddings"), ("echo", "/v1/functions/echo/invocations")],
)
async def test_a_function_of_another_kind_says_how_to_call_it(
    platform: Platform, name: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        await platform.client.chat.completions.create(model=name, messages=HELLO)
