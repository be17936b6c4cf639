"""Generation through a real worker: the wire around the decode loop."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from stoker_runtime.contract import (
    FRAME,
    DoneFrame,
    ErrorFrame,
    PromptFrame,
    ReadyEvent,
    TokenFrame,
)
from stoker_runtime.worker import ExitCode

pytestmark = pytest.mark.model

SMOLLM = Path(__file__).parents[3] / ".cache" / "models" / "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0.0}
ENDLESS = {**GREEDY, "ignore_eos": True}
WAIT_S = 30


@pytest.fixture
def chat(spawn_worker):
    """A worker that generates one answer at a time."""
    assert SMOLLM.is_dir(), "run `make models` first"
    worker = spawn_worker("--drain-s", "0")
    args = {"max_batch": 1, "max_model_len": 2048}
    *_, ready = worker.load(checkpoint_path=str(SMOLLM), args=args)
    assert isinstance(ready, ReadyEvent)
    assert (ready.context_tokens, ready.slots) == (2048, 1)
    return worker


def ask(worker, **request):
    answer = worker.client.post("/generate", json={"request_id": "q", **request})
    assert answer.status_code == 200, answer.text
    return [FRAME.validate_json(line) for line in answer.text.splitlines()]


def test_an_answer_streams_frame_by_frame(chat):
    prompt, *tokens, done = ask(chat, messages=QUESTION, sampling=GREEDY, epoch=3)
    assert isinstance(prompt, PromptFrame)
    assert all(isinstance(frame, TokenFrame) for frame in tokens)
    assert isinstance(done, DoneFrame)
    assert [frame.index for frame in tokens] == list(range(len(tokens)))
    assert {frame.epoch for frame in (prompt, *tokens, done)} == {3}
    text = "".join(frame.text for frame in tokens) + done.text
    assert text == "The capital of France is Paris."
    assert (done.prompt_tokens, done.completion_tokens) == (len(prompt.prompt_ids), len(tokens))


def test_leaving_frees_the_only_slot(chat):
    body = {"request_id": "q", "messages": QUESTION, "sampling": ENDLESS}
    with chat.client.stream("POST", "/generate", json=body) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["kind"] == "prompt"
        assert json.loads(next(lines))["kind"] == "token"
    done = ask(chat, messages=QUESTION, sampling={**GREEDY, "max_tokens": 2})[-1]
    # The one that left would have taken 2000 tokens, which no machine makes in this time.
    assert isinstance(done, DoneFrame)
    assert done.queue_ms < 1000


def test_a_wrong_request_is_refused_before_the_stream(chat):
    status, error = chat.refused("/generate", {"request_id": "q", "prompt_ids": [1] * 2048})
    assert (status, error.code) == (400, "context_length_exceeded")
    assert chat.refused("/embed", {"request_id": "q", "inputs": ["a"]})[0] == 409


def test_a_stream_at_the_drain_deadline_gets_last_words(chat):
    body = {"request_id": "q", "messages": QUESTION, "sampling": ENDLESS}
    with chat.client.stream("POST", "/generate", json=body) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["kind"] == "prompt"
        chat.process.send_signal(signal.SIGTERM)
        *_, last = lines
    frame = FRAME.validate_json(last)
    assert isinstance(frame, ErrorFrame)
    assert frame.error.code == "worker_stopped"
    assert chat.process.wait(WAIT_S) == ExitCode.DRAINED


def test_a_checkpoint_that_is_not_there_ends_the_worker(spawn_worker, tmp_path):
    worker = spawn_worker()
    *_, failed = worker.load(checkpoint_path=str(tmp_path / "nothing"))
    assert failed.error.type == "checkpoint_error"
    assert worker.process.wait(WAIT_S) == ExitCode.LOAD_FAILED
