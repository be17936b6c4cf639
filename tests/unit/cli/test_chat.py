"""Chat: streaming, what is remembered, refusals, breaks, and leaving in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from stoker.client.conversation import Conversation
from stoker.client.failure import ExitCode
from stoker.client.http import Platform
from stoker.client.terminal import Terminal

from .conftest import TIMELINE, WAIT_S

Stoker = Callable[..., Result]


@pytest.fixture(autouse=True)
def answer(fake: Any) -> None:
    fake.functions["chat"] = {"name": "chat", "state": "cold"}
    fake.chunks = [
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "The capital"}}]},
        {"choices": [{"delta": {"content": " is Paris."}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {
            "choices": [],
            "usage": {"prompt_tokens": 12, "completion_tokens": 5},
            "stoker": {"startup": TIMELINE},
        },
    ]


def test_a_prompt_streams_its_answer_to_stdout(stoker: Stoker, fake: Any) -> None:
    result = stoker("chat", "chat", "-p", "Capital?", "--max-tokens", "9", "--system", "Be brief.")
    assert (result.exit_code, result.stdout) == (0, "The capital is Paris.\n")
    assert fake.asked == [
        {
            "model": "chat",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Capital?"},
            ],
            "max_tokens": 9,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


def test_a_pipe_is_one_question(stoker: Stoker, fake: Any) -> None:
    assert stoker("chat", "chat", input="two\nlines\n").exit_code == 0
    assert fake.asked[0]["messages"] == [{"role": "user", "content": "two\nlines"}]


def test_the_waterfall_goes_to_stderr(stoker: Stoker) -> None:
    result = stoker("chat", "chat", "-p", "x", "--timeline")
    assert result.stdout == "The capital is Paris.\n"
    assert "cold start, first token after 112.4 ms" in result.stderr
    assert "dram 269 MB" in result.stderr


def test_json_carries_text_usage_and_timeline(stoker: Stoker) -> None:
    body = json.loads(stoker("chat", "chat", "-p", "x", "-o", "json").stdout)
    assert body["text"] == "The capital is Paris."
    assert (body["cold"], body["completion_tokens"], body["finish_reason"]) == (True, 5, "stop")
    assert 0 < body["first_token_ms"] <= body["total_ms"]
    assert [phase["name"] for phase in body["timeline"]["phases"]][-1] == "prefill"


def test_a_conversation_remembers(url: str, fake: Any) -> None:
    lines = iter(["first", "", "second"])

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    with Platform(url) as platform:
        Conversation(platform, silent(), "chat").hold(read)
    assert [message["content"] for message in fake.asked[1]["messages"]] == [
        "first",
        "The capital is Paris.",
        "second",
    ]


@pytest.mark.parametrize(
    ("status", "code", "exit_code", "step"),
    [
        (503, "startup_failed", ExitCode.STARTUP, "stoker logs"),
        (504, "startup_timeout", ExitCode.STARTUP, "startup.timeout"),
        (503, "crash_loop", ExitCode.STARTUP, "stoker logs"),
        (429, "queue_full", ExitCode.BUSY, "scale.max"),
        (503, "no_capacity", ExitCode.BUSY, "stoker scale"),
        (400, "context_length_exceeded", ExitCode.FAILED, "--max-tokens"),
        (500, "unheard_of", ExitCode.FAILED, ""),
    ],
)
def test_a_refusal_has_its_exit_code_and_next_step(
    stoker: Stoker, fake: Any, status: int, code: str, exit_code: ExitCode, step: str
) -> None:
    fake.refusal = (status, {"error": {"message": "because", "code": code, "type": "t"}})
    result = stoker("chat", "chat", "-p", "x")
    assert result.exit_code == exit_code
    assert "error: because" in result.stderr
    assert step in result.stderr


def test_a_failed_start_shows_the_end_of_its_log(stoker: Stoker, fake: Any) -> None:
    details = {"log_tail": ["Traceback", "ImportError: no module named x"]}
    error = {"message": "setup failed", "code": "startup_failed", "details": details}
    fake.refusal = (503, {"error": error})
    assert "| ImportError: no module named x" in stoker("chat", "chat", "-p", "x").stderr


def test_a_stream_that_breaks_fails_after_its_text(stoker: Stoker, fake: Any) -> None:
    error = {"message": "the instance died", "code": "instance_lost", "request_id": "req-1"}
    fake.chunks = [*fake.chunks[:2], {"error": error}]
    result = stoker("chat", "chat", "-p", "x")
    assert result.exit_code == ExitCode.FAILED
    assert result.stdout.startswith("The capital")
    assert "the instance died" in result.stderr


def test_an_interrupt_cancels_and_exits_130(url: str, fake: Any) -> None:
    fake.chunks, fake.hangs = fake.chunks[:2], True
    command = [sys.executable, "-m", "stoker.cli", "chat", "chat", "-p", "x", "--url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(len("The capital")) == b"The capital"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == ExitCode.INTERRUPTED == 130
    assert b"Traceback" not in stderr
    assert fake.client_left.wait(WAIT_S), "the platform was not told that the client left"


def silent() -> Terminal:
    from io import StringIO

    return Terminal(Console(file=StringIO()), Console(file=StringIO()), as_json=False)
