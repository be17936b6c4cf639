"""The product's main job: a deployed model answers from nothing, warm, and from nothing again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import openai
import pytest

from e2e.conftest import Up

pytestmark = pytest.mark.model

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
PHASES = ["queue", "schedule", "provision", "fetch", "load", "init", "prefill"]


@pytest.fixture
def client(up: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{up.local.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_cold_streamed_answer_then_a_warm_one(up: Up, chat: str, client: openai.OpenAI) -> None:
    up.scale(chat, 0)
    up.http.get("/readyz?warm=1").raise_for_status()
    texts = []
    for cold in (True, False):
        began = time.monotonic()
        raw = client.chat.completions.with_raw_response.create(
            model=chat,
            messages=QUESTION,
            stream=True,
            temperature=0,
            max_tokens=24,
            stream_options={"include_usage": True},
        )
        chunks = list(raw.parse())
        wall_ms = (time.monotonic() - began) * 1e3
        assert raw.headers["x-cold-start"] == str(cold).lower()
        assert raw.headers["x-function-revision"].startswith("chat-")
        assert "prefill;dur=" in raw.headers["server-timing"]
        texts.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
        usage = chunks[-1].usage
        assert usage is not None
        assert usage.completion_tokens > 0
        startup = up.http.get(f"/v1/requests/{raw.headers['x-request-id']}/startup").json()
        assert startup["cold"] is cold
        assert startup["total_ms"] <= wall_ms
        names = [p["name"] for p in startup["phases"]]
        assert names == (PHASES if cold else ["queue", "schedule", "prefill"])
        if cold:
            load = startup["phases"][names.index("load")]
            assert load["tier"] in ("dram", "ssd")
            assert load["bytes"] > 200e6
        assert chunks[-1].model_extra is not None
        assert chunks[-1].model_extra["stoker"]["startup"]["phases"] == startup["phases"]
    assert "Paris" in texts[0]
    assert texts[0] == texts[1]


def test_phases_are_contiguous_and_add_up_to_the_total(up: Up, chat: str) -> None:
    up.scale(chat, 0)
    body = {"model": chat, "messages": QUESTION, "max_tokens": 4}
    answer = up.http.post("/v1/chat/completions", json=body)
    startup = up.http.get(f"/v1/requests/{answer.headers['x-request-id']}/startup").json()
    at_ms = 0.0
    for phase in startup["phases"]:
        assert phase["start_ms"] == pytest.approx(at_ms, abs=0.05)
        at_ms += phase["duration_ms"]
    assert at_ms == pytest.approx(startup["total_ms"], abs=0.1)


def test_not_streaming_completions_models_and_embedding_refusal(
    up: Up, chat: str, client: openai.OpenAI
) -> None:
    whole = client.chat.completions.create(model=chat, messages=QUESTION, temperature=0)
    assert "Paris" in (whole.choices[0].message.content or "")
    text = client.completions.create(
        model=chat, prompt="The capital of France is", temperature=0, max_tokens=5
    )
    assert "Paris" in text.choices[0].text
    assert chat in [m.id for m in client.models.list()]
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=chat, input="hello")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=QUESTION)


def test_the_same_seed_gives_the_same_text(chat: str, client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=chat, messages=QUESTION, seed=seed, temperature=1.5, max_tokens=24
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(
    chat: str, client: openai.OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model=chat, messages=[{"role": "user", "content": "word " * 9000}]
        )
    body = json.loads(refused.value.response.text)["error"]
    assert body["code"] == "context_length_exceeded"
    assert body["details"]["prompt_tokens"] > body["details"]["context_tokens"]


@pytest.mark.parametrize(
    "wrong", [{"temperature": 9}, {"top_p": 0}, {"max_tokens": 0}, {"n": 2}, {"stop": ["x"] * 99}]
)
def test_invalid_sampling_is_named(chat: str, client: openai.OpenAI, wrong: dict) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=chat, messages=QUESTION, **wrong)
    assert next(iter(wrong)) in str(refused.value)


def test_prompts_are_never_logged(up: Up, chat: str, client: openai.OpenAI) -> None:
    secret = "xylophone-4711"
    client.chat.completions.create(
        model=chat, messages=[{"role": "user", "content": secret}], max_tokens=4
    )
    written = [p for p in up.local.home.rglob("*.log") if secret.encode() in p.read_bytes()]
    assert written == []
    assert up.local.log.stat().st_size > 0
