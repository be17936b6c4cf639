"""Tokens a second: one stream against Transformers, eight streams against one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
from tests.bench.peers import decoder
from tests.bench.report import Row
from tests.bench.stage import SLOTS, STORY, Stage
from tests.bench.stats import median
from tests.bench.streams import (
    OPENAI,
    PLAIN,
    SOCKET,
    Body,
    Streamed,
    socket_body,
    socket_client,
    stream,
    tokens_per_s,
)

MIN_DECODE_RATIO = 1.4
MIN_BATCH_RATIO = 4.0


def decode_row(stage: Stage) -> list[Row]:
    """Greedy, batch 1: through the platform, at the runtime's socket, and `model.generate`."""
    stage.warm()
    tokens = stage.plan.decode_tokens
    messages = [{"role": "user", "content": STORY}]
    direct_bodies = socket_body(messages, max_tokens=tokens, ignore_eos=True)
    samples: dict[str, list[float]] = {
        "platform_tokens_per_s": [],
        "socket_tokens_per_s": [],
        "transformers_tokens_per_s": [],
    }
    with (
        decoder(stage.checkpoint, STORY) as peer,
        socket_client(stage.instance_socket()) as direct,
        httpx.Client(**PLAIN, base_url=stage.local.url) as platform,
    ):
        ways: dict[str, Callable[[], float]] = {
            "platform_tokens_per_s": lambda: rate(stream(platform, OPENAI, _asked(stage, STORY))),
            "socket_tokens_per_s": lambda: rate(stream(direct, SOCKET, next(direct_bodies))),
            "transformers_tokens_per_s": lambda: (tokens - 1) / peer.decode_s(tokens),
        }
        for call in ways.values():
            call()
        for _ in range(stage.plan.decode_runs):
            for name in stage.rng.sample(list(ways), len(ways)):
                samples[name].append(ways[name]())
        peer_threads = peer.threads
    platform_rate, socket_rate, peer_rate = (median(values) for values in samples.values())
    ratio = platform_rate / peer_rate
    return [
        Row(
            id="decode",
            question="decode at batch 1 (SmolLM2 bf16), through the platform",
            target=f">= {MIN_DECODE_RATIO}x `model.generate` of Transformers in the same run",
            figure=f"{platform_rate:.1f} tokens/s ({socket_rate:.1f} at the socket); "
            f"Transformers {peer_rate:.1f}: {ratio:.2f}x",
            passed=ratio >= MIN_DECODE_RATIO,
            method=f"Greedy, {tokens} tokens of the same prompt whatever the model would end with, "
            "from the first token to the last at the client. The peer is a resident process that "
            "notes the same two moments in a streamer. In turns, in random order, nothing else "
            "running.",
            samples=samples,
            facts={"threads of the peer": peer_threads},
        )
    ]


def batch_row(stage: Stage) -> list[Row]:
    """Eight streams at once on one instance against one stream."""
    stage.warm()
    samples: dict[str, list[float]] = {"one_tokens_per_s": [], "eight_tokens_per_s": []}
    streams = {"one_tokens_per_s": 1, "eight_tokens_per_s": SLOTS}
    for count in streams.values():
        _throughput(stage, count)
    for _ in range(stage.plan.decode_runs):
        for name in stage.rng.sample(list(streams), len(streams)):
            samples[name].append(_throughput(stage, streams[name]))
    one, eight = median(samples["one_tokens_per_s"]), median(samples["eight_tokens_per_s"])
    return [
        Row(
            id="batch",
            question=f"{SLOTS} streams at once on one instance, through the platform",
            target=f">= {MIN_BATCH_RATIO:g}x the tokens per second of one stream",
            figure=f"{eight:.0f} against {one:.1f} tokens/s: {eight / one:.2f}x",
            passed=eight / one >= MIN_BATCH_RATIO,
            method=f"Greedy, {stage.plan.decode_tokens} tokens a stream, prompts that differ. All "
            "tokens divided by the time from the first request to the last answer's end, prompts "
            "included. One and eight in turns, in random order.",
            samples=samples,
        )
    ]


def rate(streamed: Streamed) -> float:
    """Tokens a second after the first one."""
    return (streamed.tokens - 1) / (streamed.last_s - streamed.first_s)


def _asked(stage: Stage, prompt: str) -> Body:
    return {
        **stage.question(prompt, max_tokens=stage.plan.decode_tokens, ignore_eos=True),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _throughput(stage: Stage, count: int) -> float:
    bodies = [_asked(stage, f"{STORY} It happens in chapter {n}.") for n in range(count)]
    return asyncio.run(tokens_per_s(stage.local.url, OPENAI, bodies))
