"""The platform over a bucket: pushed there, brought to a node that has nothing, still there when
the store is not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from e2e.conftest import ROOT, Up, run_up
from stoker.cli import app
from stoker.client.local import tail
from stoker.errors import StartupFailed
from support.minio import Minio, executable, running

pytestmark = pytest.mark.model

PREFETCH_TIMEOUT_S = 30.0

BODY = {
    "model": "chat",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 16,
}


@pytest.fixture
def own_minio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Minio]:
    """A server of this test's own, since it is stopped, which the environment names."""
    if executable() is None:
        pytest.skip("neither minio nor Go is on PATH: `make minio` says how to get it")
    with running(tmp_path / "minio") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@contextmanager
def platform(home: Path, *options: str) -> Iterator[Up]:
    runs = run_up(home, options=("--store", "s3://models/stoker", *options))
    try:
        yield next(runs)
    finally:
        with pytest.raises(StopIteration):
            next(runs)


def answer(up: Up) -> tuple[str, dict[str, dict[str, object]]]:
    """What the model says, and the phases of that by their names."""
    asked = up.http.post("/v1/chat/completions", json=BODY)
    asked.raise_for_status()
    startup = up.http.get(f"/v1/requests/{asked.headers['x-request-id']}/startup").json()
    text = asked.json()["choices"][0]["message"]["content"]
    return text, {phase["name"]: phase for phase in startup["phases"]}


def stoker(up: Up, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", up.local.url])


def copies(up: Up) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stoker(up, "cache", "list", "-o", "json").stdout)
    return found


def until(up: Up, key: str, value: object) -> None:
    """Until something is so of the only copy, which no event tells a client of."""
    deadline = time.monotonic() + PREFETCH_TIMEOUT_S
    while [copy[key] for copy in copies(up)] != [value]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_model_in_a_bucket_starts_on_an_empty_node_and_without_the_bucket(
    own_minio: Minio, smollm2: Path, tmp_path: Path
) -> None:
    from stoker.checkpoints.bucket import connect

    connect().create_bucket(Bucket="models")
    home = tmp_path / "home"
    with platform(home) as up:
        up.deploy(ROOT / "functions" / "chat")
        said, phases = answer(up)
        assert "Paris" in said
        assert phases["fetch"]["tier"] == "remote"
        assert phases["fetch"]["bytes"] > smollm2.joinpath("model.safetensors").stat().st_size
    assert not list((home / "checkpoints").iterdir()), "the bucket alone keeps it"
    cached = home / "cache"
    shutil.rmtree(cached)
    with platform(home) as up:
        again, phases = answer(up)
        assert (again, phases["fetch"]["tier"]) == (said, "remote")
        (copy,) = copies(up)
        assert (copy["state"], copy["holders"]) == ("whole", 1)
        assert copy["dram_bytes"] > 200e6
        kept = stoker(up, "cache", "evict", copy["digest"])
        assert kept.exit_code == 1
        assert "their functions to 0" in kept.stderr
        up.scale("chat", 0)
        until(up, "holders", 0)
        assert stoker(up, "cache", "evict", copy["digest"]).exit_code == 0
        assert copies(up) == []
        assert stoker(up, "cache", "prefetch", copy["digest"]).exit_code == 0
        until(up, "state", "whole")
        assert "DRAM" in stoker(up, "cache", "list").stdout
        again, phases = answer(up)
        assert again == said
        assert phases["fetch"]["tier"] is None, "it is on the node"
        assert phases["load"]["tier"] in ("dram", "ssd")
    own_minio.stop()
    with platform(home) as up:
        assert answer(up)[0] == said
        own_minio.start()
        up.deploy(ROOT / "functions" / "classifier")
        asked = {"text": "I love it"}
        assert up.invoke("classifier", asked).status_code == 200, "its own weights came whole"


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("s3://never-made", "there is no bucket 'never-made'"),
        ("gs://models", "expected s3://BUCKET"),
    ],
)
def test_a_bucket_that_is_none_is_said_at_once(
    own_minio: Minio, tmp_path: Path, store: str, message: str
) -> None:
    home = tmp_path / "home"
    with pytest.raises(StartupFailed):
        next(run_up(home, options=("--store", store)))
    said = tail(home / "platform.log")
    assert message in said
    assert own_minio.password not in said
    assert "Traceback" not in said
