"""The stage that every row plays on: a real platform with a real model, and its client."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import yaml

from stoker.client.chat import Turn, chat, request_body
from stoker.client.deploy import deploy
from stoker.client.http import Platform
from stoker.client.local import LocalPlatform, local_platform

CHAT = "bench-chat"
PROMPT = "What is the capital of France?"
STORY = "Tell me a long story about a lighthouse keeper and the sea."
COLD_TOKENS = 16  # an answer long enough to be one; the clock stops at its first token
SLOTS = 8
SEED = 20261122


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    cold_runs: int = 20
    warm_pairs: int = 400
    herd_runs: int = 5
    decode_runs: int = 20
    decode_tokens: int = 96
    seed: int = SEED

    @staticmethod
    def quick(seed: int) -> Plan:
        """A smoke run: every row, three times."""
        return Plan(
            cold_runs=3, warm_pairs=20, herd_runs=1, decode_runs=3, decode_tokens=32, seed=seed
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """A running platform with the chat function deployed. `checkpoint` is the user's folder,
    `stored` the platform's own copy of it, in its layout."""

    local: LocalPlatform
    api: Platform
    checkpoint: Path
    stored: Path
    plan: Plan
    rng: random.Random

    def to_zero(self) -> None:
        """Stops every instance, and waits until the next start finds what it needs."""
        self.api.scale(CHAT, 0)
        self.api.ready(warm=True)

    def warm(self) -> None:
        """Runs one instance and lets it answer once; the pool is full again when this returns,
        so that no new worker's imports compete with what is measured next."""
        self.api.scale(CHAT, 1)
        self.ask()
        self.api.ready(warm=True)

    def ask(self) -> Turn:
        turn = chat(self.api, self.question(PROMPT, max_tokens=COLD_TOKENS))
        assert turn.first_token_ms is not None, "the model answered nothing"
        return turn

    @staticmethod
    def question(prompt: str, **sampling: object) -> dict[str, object]:
        messages = [{"role": "user", "content": prompt}]
        return request_body(CHAT, messages, temperature=0, **sampling)

    def cpu_s(self) -> float:
        """CPU seconds that the platform and everything it runs have used so far."""
        root = psutil.Process(self.local.pid)
        used = 0.0
        for process in (root, *root.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used += times.user + times.system
        return used

    def instance_socket(self) -> Path:
        """The Unix socket of the one instance that runs now, as the kernel lists it."""
        (instance,) = self.api.instances(CHAT)
        paths = {
            Path(connection.laddr)
            for connection in psutil.Process(instance["pid"]).net_connections(kind="unix")
            if connection.laddr
        }
        (socket,) = (path for path in paths if path.is_socket())
        return socket


@contextmanager
def stage(home: Path, checkpoint: Path, plan: Plan) -> Iterator[Stage]:
    """Brings up a platform in an empty `home` and deploys `checkpoint` on it."""
    with local_platform(home, warm_pool=1) as local, Platform(local.url) as api:
        deploy_manifest(
            api,
            home / "functions" / CHAT,
            {
                "name": CHAT,
                "model": {"uri": str(checkpoint)},
                "runtime": {"args": {"max_model_len": 2048, "max_batch": SLOTS}},
                "scale": {"max": 1, "target": SLOTS, "hard_limit": SLOTS, "keep_alive": "1h"},
            },
        )
        yield Stage(local, api, checkpoint, _stored(home), plan, random.Random(plan.seed))


def deploy_manifest(api: Platform, folder: Path, manifest: dict[str, object]) -> None:
    """Deploys a function that is written here rather than in a file of the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "function.yaml").write_text(yaml.safe_dump(manifest))
    deploy(api, folder, report=lambda stage, bytes_done, bytes_total: None)


def _stored(home: Path) -> Path:
    folders = {path.parent for path in home.rglob("*.safetensors")}
    assert len(folders) == 1, f"expected one stored checkpoint, found {sorted(folders)}"
    return folders.pop()
