"""What the platform adds to a warm request, beside a direct call and a bare relay."""

from __future__ import annotations

from collections.abc import Callable

import httpx
from tests.bench.peers import relay
from tests.bench.report import Row
from tests.bench.stage import PROMPT, Stage
from tests.bench.stats import median, quantile
from tests.bench.streams import (
    OPENAI,
    PLAIN,
    SOCKET,
    Streamed,
    socket_body,
    socket_client,
    stream,
)

MAX_MEDIAN_MS = 3.0
MAX_P99_MS = 10.0
REHEARSALS = 5  # of each way: connections open, code paths warm


def warm_row(stage: Stage) -> list[Row]:
    """Interleaved triples: the runtime's socket, a bare relay, the platform."""
    stage.warm()
    socket = stage.instance_socket()
    messages = [{"role": "user", "content": PROMPT}]
    direct_bodies = socket_body(messages, max_tokens=1)
    asked = {
        **stage.question(PROMPT, max_tokens=1),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answers: dict[str, list[Streamed]] = {"direct": [], "relay": [], "platform": []}
    with (
        relay(socket) as relay_url,
        socket_client(socket) as direct,
        httpx.Client(**PLAIN, base_url=relay_url) as relayed,
        httpx.Client(**PLAIN, base_url=stage.local.url) as platform,
    ):
        ways: dict[str, Callable[[], Streamed]] = {
            "direct": lambda: stream(direct, SOCKET, next(direct_bodies)),
            "relay": lambda: stream(relayed, SOCKET, next(direct_bodies)),
            "platform": lambda: stream(platform, OPENAI, asked),
        }
        for _ in range(REHEARSALS):
            for call in ways.values():
                call()
        for _ in range(stage.plan.warm_pairs):
            for name in stage.rng.sample(list(ways), len(ways)):
                answers[name].append(ways[name]())
    first_ms = {
        f"{name}_ms": [one.first_s * 1000 for one in all_] for name, all_ in answers.items()
    }
    outside_ms = {
        name: [(one.first_s - one.instance_s) * 1000 for one in all_]
        for name, all_ in answers.items()
    }
    added = _difference(outside_ms["platform"], outside_ms["direct"])
    relayed_added = _difference(outside_ms["relay"], outside_ms["direct"])
    whole = _difference(first_ms["platform_ms"], first_ms["direct_ms"])
    return [
        Row(
            id="warm-overhead",
            question="warm request to first token: what the platform adds to a direct call of the "
            "runtime's socket",
            target=f"<= {MAX_MEDIAN_MS:g} ms median, <= {MAX_P99_MS:g} ms p99",
            figure=f"{median(added):.2f} ms median, {quantile(added, 0.99):.2f} ms p99 "
            f"(bare relay {median(relayed_added):.2f} and "
            f"{quantile(relayed_added, 0.99):.2f} ms; with the instance's own jitter left in "
            f"{median(whole):.2f} and {quantile(whole, 0.99):.2f} ms)",
            passed=median(added) <= MAX_MEDIAN_MS and quantile(added, 0.99) <= MAX_P99_MS,
            method="Triples of requests to one warm instance in random order, each to its first "
            "text: to the runtime's Unix socket, through a bare Starlette + httpx relay, through "
            "the platform. The same client code reads all three over connections that stay open. "
            "Of each request the time that the instance itself measured (its queue and prefill, "
            "which differ by tens of ms between requests) is taken off; the figure is the "
            "difference of what remains within each triple. The samples hold all of it, and the "
            "figure also says what the difference is without taking anything off.",
            samples={
                **first_ms,
                **{f"{name}_outside_ms": values for name, values in outside_ms.items()},
                "added_ms": added,
                "relay_added_ms": relayed_added,
                "whole_added_ms": whole,
            },
        )
    ]


def _difference(more: list[float], less: list[float]) -> list[float]:
    return [m - d for m, d in zip(more, less, strict=True)]
