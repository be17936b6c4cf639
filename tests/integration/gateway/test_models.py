"""Completions, embeddings and the list of models through the unmodified `openai` client."""

from __future__ import annotations

import asyncio

import openai
import pytest

from integration.gateway.conftest import SEED, Platform
from integration.gateway.peer import words
from stoker_runtime.contract import EmbedResponse

VECTORS = ((0.6, 0.8), (1.0, 0.0))


async def test_a_completion(platform: Platform) -> None:
    platform.peer.will(words("a", "b", reason="length"))
    answer = await platform.client.completions.create(model="chat", prompt="Once", logprobs=0)
    assert answer.choices[0].text == "ab"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.tokens == ["a", "b"]
    assert answer.choices[0].logprobs.text_offset == [0, 1]
    assert answer.usage.completion_tokens == 2
    [request] = platform.peer.requests
    assert (request.prompt, request.sampling.max_tokens) == ("Once", 16)
    assert request.sampling.seed == SEED


async def test_a_streamed_completion(platform: Platform) -> None:
    platform.peer.will(words("a", "b"))

    def read() -> list[openai.types.Completion]:
        with platform.sync_client as client:
            stream = client.completions.create(model="chat", prompt=[5, 6], stream=True)
            return list(stream)

    chunks = await asyncio.to_thread(read)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"
    assert chunks[-1].model_extra["stoker"]["startup"]["phases"]
    assert platform.peer.requests[0].prompt_ids == (5, 6)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "z"}, "suffix"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
    ],
)
async def test_bad_completion_parameters(
    platform: Platform, parameters: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await platform.client.completions.create(model="chat", **parameters)
    assert raised.value.param == param


async def test_embeddings_packed_and_plain(platform: Platform) -> None:
    for _ in range(2):
        platform.peer.will([EmbedResponse(embeddings=VECTORS, prompt_tokens=5)])
    packed = await platform.client.embeddings.create(model="embed", input=["a", "b"])
    plain = await platform.client.embeddings.create(
        model="embed", input=["a", "b"], encoding_format="float", dimensions=2
    )
    assert [one.embedding for one in plain.data] == [list(vector) for vector in VECTORS]
    for one, vector in zip(packed.data, VECTORS, strict=True):
        assert one.embedding == pytest.approx(vector)
    assert [one.index for one in packed.data] == [0, 1]
    assert packed.usage.prompt_tokens == 5
    assert platform.peer.requests[0].inputs == ("a", "b")
    assert platform.peer.requests[1].dimensions == 2
    assert platform.leasing.first_tokens[0][2] == 5


@pytest.mark.parametrize(
    ("given", "inputs"), [([1, 2], ((1, 2),)), ([[1], [2]], ((1,), (2,))), ("a", ("a",))]
)
async def test_embedding_inputs_of_every_kind(
    platform: Platform, given: object, inputs: object
) -> None:
    platform.peer.will([EmbedResponse(embeddings=VECTORS[:1], prompt_tokens=1)])
    await platform.client.embeddings.create(model="embed", input=given)
    assert platform.peer.requests[0].inputs == inputs


@pytest.mark.parametrize("given", [[], [""], [[]], ["a"] * 2049, ["a", 1]])
async def test_bad_embedding_inputs(platform: Platform, given: object) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await platform.client.embeddings.create(model="embed", input=given)
    assert raised.value.param.startswith("input")


async def test_an_embedding_of_a_text_function_says_how_to_call_it(platform: Platform) -> None:
    with pytest.raises(openai.BadRequestError, match="/v1/chat/completions"):
        await platform.client.embeddings.create(model="chat", input="a")


async def test_cold_models_are_listed_and_handlers_are_none(platform: Platform) -> None:
    listed = await platform.client.models.list()
    assert [model.id for model in listed.data] == ["auto", "chat", "embed"]
    model = await platform.client.models.retrieve("chat")
    assert (model.id, model.created, model.owned_by) == ("chat", 1_700_000_000, "stoker")
    with pytest.raises(openai.NotFoundError):
        await platform.client.models.retrieve("nothing")
    with pytest.raises(openai.BadRequestError, match="runs a handler"):
        await platform.client.models.retrieve("echo")
    assert platform.leasing.timeouts == [], "listing wakes nobody"
