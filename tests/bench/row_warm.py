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
    samples: dict[str, list[float]] = {"direct_ms": [], "relay_ms": [], "platform_ms": []}
    with (
        relay(socket) as relay_url,
        socket_client(socket) as direct,
        httpx.Client(**PLAIN, base_url=relay_url) as relayed,
        httpx.Client(**PLAIN, base_url=stage.local.url) as platform,
    ):
        ways: dict[str, Callable[[], Streamed]] = {
            "direct_ms": lambda: stream(direct, SOCKET, next(direct_bodies)),
            "relay_ms": lambda: stream(relayed, SOCKET, next(direct_bodies)),
            "platform_ms": lambda: stream(platform, OPENAI, asked),
        }
        for _ in range(REHEARSALS):
            for call in ways.values():
                call()
        for _ in range(stage.plan.warm_pairs):
            for name in stage.rng.sample(list(ways), len(ways)):
                samples[name].append(ways[name]().first_s * 1000)
    added = [p - d for p, d in zip(samples["platform_ms"], samples["direct_ms"], strict=True)]
    relays = [r - d for r, d in zip(samples["relay_ms"], samples["direct_ms"], strict=True)]
    return [
        Row(
            id="warm-overhead",
            question="warm request to first token: what the platform adds to a direct call of the "
            "runtime's socket",
            target=f"<= {MAX_MEDIAN_MS:g} ms median, <= {MAX_P99_MS:g} ms p99",
            figure=f"{median(added):.2f} ms median, {quantile(added, 0.99):.2f} ms p99 "
            f"(bare relay {median(relays):.2f} and {quantile(relays, 0.99):.2f} ms)",
            passed=median(added) <= MAX_MEDIAN_MS and quantile(added, 0.99) <= MAX_P99_MS,
            method="Triples of requests to one warm instance in random order, each to its first "
            "text: to the runtime's Unix socket, through a bare Starlette + httpx relay, through "
            "the platform. The same client code reads all three over connections that stay open. "
            "The figure is the difference within each triple, so the instance's own jitter is in "
            "it too; nothing is left out.",
            samples={**samples, "added_ms": added, "relay_added_ms": relays},
        )
    ]
