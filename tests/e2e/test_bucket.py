"""The platform over a bucket: pushed there, brought to a node that has nothing, still there when
the store is not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.conftest import ROOT, Up, run_up
from stoker.client.local import tail
from stoker.errors import StartupFailed
from support.minio import Minio, executable, running

pytestmark = pytest.mark.model

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
        up.scale("chat", 0)
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
