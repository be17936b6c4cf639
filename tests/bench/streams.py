"""Streams read with the least of a client, the same for the platform, a relay and a socket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

Body = Mapping[str, Any]

# A client's options for loopback. Without `verify=False` each client reads certificates first.
PLAIN: dict[str, Any] = {"timeout": None, "trust_env": False, "verify": False}


@dataclass(frozen=True, slots=True)
class Streamed:
    """When text came, in seconds since the request was sent. `instance_s` is what the instance
    itself spent up to its first token, by its own clock."""

    first_s: float
    last_s: float
    end_s: float
    tokens: int
    instance_s: float


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a stream says text in each of its lines, and in one how many tokens it was and what
    the instance measured (`queue_ms`, `prefill_ms`)."""

    path: str
    text: Callable[[bytes], str]
    tokens: Callable[[bytes], int | None]
    measured: Callable[[bytes], Mapping[str, float] | None]


def _sse(line: bytes) -> Any:
    if not line.startswith(b"data: {"):
        return {}
    event = json.loads(line[6:])
    if "error" in event:
        raise RuntimeError(f"the stream broke: {event['error']}")
    return event


def _sse_text(line: bytes) -> str:
    return "".join(c["delta"].get("content") or "" for c in _sse(line).get("choices", ()))


def _sse_tokens(line: bytes) -> int | None:
    return (_sse(line).get("usage") or {}).get("completion_tokens")


def _sse_measured(line: bytes) -> Any:
    return (_sse(line).get("stoker") or {}).get("generation")


def _frame(line: bytes) -> Any:
    frame = json.loads(line)
    if frame["kind"] == "error":
        raise RuntimeError(f"the stream broke: {frame['error']}")
    return frame


def _frame_text(line: bytes) -> str:
    return str(_frame(line).get("text", ""))


def _frame_tokens(line: bytes) -> int | None:
    tokens: int | None = _frame(line).get("completion_tokens")
    return tokens


def _frame_measured(line: bytes) -> Any:
    frame = _frame(line)
    return frame if "prefill_ms" in frame else None


OPENAI = Dialect("/v1/chat/completions", _sse_text, _sse_tokens, _sse_measured)
SOCKET = Dialect("/generate", _frame_text, _frame_tokens, _frame_measured)


class Reader:
    """Notes times while chunks come; lines may be cut anywhere."""

    def __init__(self, dialect: Dialect, clock: Callable[[], float] = time.perf_counter) -> None:
        self._dialect = dialect
        self._clock = clock
        self._pending = b""
        self._began = clock()
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tokens: int | None = None
        self._measured: Mapping[str, float] | None = None

    def feed(self, chunk: bytes) -> None:
        now_s = self._clock() - self._began
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in filter(None, lines):
            if self._dialect.text(line):
                self._first_s = now_s if self._first_s is None else self._first_s
                self._last_s = now_s
            self._tokens = self._dialect.tokens(line) or self._tokens
            self._measured = self._dialect.measured(line) or self._measured

    def done(self) -> Streamed:
        assert self._first_s is not None, "the stream held no text"
        assert self._tokens is not None, "the stream did not count its tokens"
        assert self._measured is not None, "the stream did not say what the instance measured"
        end_s = self._clock() - self._began
        instance_s = (self._measured["queue_ms"] + self._measured["prefill_ms"]) / 1000
        return Streamed(self._first_s, self._last_s, end_s, self._tokens, instance_s)


def socket_client(socket: Path) -> httpx.Client:
    """A client of one instance's Unix socket."""
    transport = httpx.HTTPTransport(uds=str(socket), verify=False)
    return httpx.Client(**PLAIN, transport=transport, base_url="http://instance")


def stream(client: httpx.Client, dialect: Dialect, body: Body) -> Streamed:
    """One request, read to its end."""
    reader = Reader(dialect)
    with client.stream("POST", dialect.path, json=body) as response:
        _check(response.status_code, dialect)
        for chunk in response.iter_raw():
            reader.feed(chunk)
    return reader.done()


async def tokens_per_s(url: str, dialect: Dialect, bodies: list[Body]) -> float:
    """All requests at once, each on a connection of its own: the tokens of all, by the time from
    the first request to the last answer's end."""

    async def one(body: Body) -> Streamed:
        reader = Reader(dialect)
        async with client.stream("POST", dialect.path, json=body) as response:
            _check(response.status_code, dialect)
            async for chunk in response.aiter_raw():
                reader.feed(chunk)
        return reader.done()

    async with httpx.AsyncClient(**PLAIN, base_url=url) as client:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(body)) for body in bodies]
        seconds = time.perf_counter() - began
        return sum(task.result().tokens for task in tasks) / seconds


def _check(status: int, dialect: Dialect) -> None:
    if status != httpx.codes.OK:
        raise RuntimeError(f"{dialect.path} answered HTTP {status}")


def socket_body(messages: list[dict[str, str]], **sampling: object) -> Iterator[Body]:
    """Requests of the runtime's contract for these messages, each with an id of its own."""
    number = 0
    while True:
        number += 1
        yield {
            "request_id": f"bench-{number}",
            "messages": messages,
            "sampling": {"temperature": 0, **sampling},
        }
