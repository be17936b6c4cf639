"""Two hundred requests at once for a cold function: exactly as many starts as it wants."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import httpx
from tests.bench.report import Row
from tests.bench.stage import Stage, deploy_manifest
from tests.bench.stats import median
from tests.bench.streams import PLAIN

REQUESTS = 200
TARGETS = (200, 100, 50)  # requests at once that one instance is aimed at
HOLD_S = 1.0  # how long a request takes: longer than the herd needs to arrive
HANDLER = """\
import asyncio


async def predict(payload):
    await asyncio.sleep(payload["hold_s"])
    return payload
"""


def herd_row(stage: Stage) -> list[Row]:
    samples: dict[str, list[float]] = {}
    facts: dict[str, float | int | str | bool | None] = {}
    exact = True
    for target in TARGETS:
        wanted = math.ceil(REQUESTS / target)
        name = f"bench-echo-{target}"
        _deploy(stage, name, target, wanted)
        starts: list[float] = []
        answered: list[float] = []
        for _ in range(stage.plan.herd_runs):
            stage.api.scale(name, 0)
            stage.api.ready(warm=True)
            before = _ids(stage, name)
            times_s = asyncio.run(_herd(stage.local.url, name))
            starts.append(len(_ids(stage, name) - before))
            answered.append(len(times_s))
            samples.setdefault(f"target_{target}_answer_s", []).extend(times_s)
        samples[f"target_{target}_starts"] = starts
        samples[f"target_{target}_answers"] = answered
        facts[f"starts wanted at target {target}"] = wanted
        exact = exact and set(starts) == {wanted} and set(answered) == {REQUESTS}
        stage.api.delete(name)
    made = ", ".join(
        f"{median(samples[f'target_{t}_starts']):g} of {math.ceil(REQUESTS / t)} at target {t}"
        for t in TARGETS
    )
    return [
        Row(
            id="herd",
            question=f"{REQUESTS} requests at once for a cold function (echo handler)",
            target=f"exactly the starts that the concurrency target wants; {REQUESTS} answers",
            figure=f"starts: {made}; every request answered: {exact}",
            passed=exact,
            method=f"An echo handler that holds each request for {HOLD_S:g} s, so that all are "
            "under way together, is scaled to zero; the herd is sent on connections of its own; "
            "each answer must equal what was sent. Starts are the instances that exist afterwards "
            f"and did not before. Wanted: {REQUESTS} / target, rounded up.",
            samples=samples,
            facts=facts,
        )
    ]


def _deploy(stage: Stage, name: str, target: int, most: int) -> None:
    folder = Path(stage.local.home) / "functions" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "handler.py").write_text(HANDLER)
    deploy_manifest(
        stage.api,
        folder,
        {
            "name": name,
            "runtime": {"engine": "handler", "handler": "handler.py"},
            # One more than wanted may run, so that one start too many would be seen.
            "scale": {"max": most + 1, "target": target, "hard_limit": target, "keep_alive": "1h"},
            "startup": {"max_held": REQUESTS},
        },
    )


def _ids(stage: Stage, name: str) -> set[str]:
    return {instance["id"] for instance in stage.api.instances(name)}


async def _herd(url: str, name: str) -> list[float]:
    """Seconds until each of the answers; raises when one is missing or wrong."""
    limits = httpx.Limits(max_connections=REQUESTS)
    async with httpx.AsyncClient(**PLAIN, base_url=url, limits=limits) as client:

        async def one(number: int) -> float:
            payload = {"number": number, "hold_s": HOLD_S}
            began = asyncio.get_running_loop().time()
            reply = await client.post(f"/v1/functions/{name}/invocations", json=payload)
            if reply.status_code != httpx.codes.OK or reply.json() != payload:
                raise RuntimeError(f"request {number}: HTTP {reply.status_code} {reply.text[:200]}")
            return asyncio.get_running_loop().time() - began

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(number)) for number in range(REQUESTS)]
        return [task.result() for task in tasks]
