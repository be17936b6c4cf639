"""One chat turn as a client sees it: the text as it streams, and the client's own clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stoker.client.http import Json, Platform, Reply
from stoker.client.timeline import timeline_from
from stoker.domain import Timeline


@dataclass(frozen=True, slots=True)
class Turn:
    """A finished answer. Times in ms since the request was sent."""

    text: str
    request_id: str
    cold: bool
    first_token_ms: float | None  # None: the answer held no text
    total_ms: float
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    timeline: Timeline | None


def chat(
    platform: Platform,
    body: Json,
    *,
    on_reply: Callable[[Reply], None] = lambda _: None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Turn:
    """Sends a chat completion and hears its answer to the end.

    `on_reply` hears the head of the reply, `on_text` each piece of text. Raises what the platform
    refuses with; an exception in a callback cancels the generation.
    """
    began = time.perf_counter()
    first_token_ms: float | None = None
    pieces: list[str] = []
    usage: Json = {}
    finish_reason: str | None = None
    startup: Json | None = None
    with platform.chat(body) as (reply, chunks):
        on_reply(reply)
        for chunk in chunks:
            usage = chunk.get("usage") or usage
            startup = chunk.get("stoker", {}).get("startup") or startup
            for choice in chunk.get("choices", ()):
                finish_reason = choice.get("finish_reason") or finish_reason
                text = choice.get("delta", {}).get("content")
                if not text:
                    continue
                if first_token_ms is None:
                    first_token_ms = (time.perf_counter() - began) * 1000
                pieces.append(text)
                on_text(text)
    return Turn(
        text="".join(pieces),
        request_id=reply.request_id,
        cold=reply.cold,
        first_token_ms=first_token_ms,
        total_ms=(time.perf_counter() - began) * 1000,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        finish_reason=finish_reason,
        timeline=timeline_from(startup) if startup else None,
    )


def request_body(function: str, messages: Iterable[Json], **sampling: object) -> Json:
    """OpenAI's request for these messages; sampling values that are None are left out."""
    chosen = {name: value for name, value in sampling.items() if value is not None}
    return {"model": function, "messages": list(messages), **chosen}
