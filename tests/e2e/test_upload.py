"""A model's files are put into the bucket, and that is all: events tell the platform."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.conftest import Up, run_up
from stoker.checkpoints.bucket import connect
from support.minio import Minio, executable, running

pytestmark = pytest.mark.model

TOKEN = "a-token-of-this-test"
IMPORT_TIMEOUT_S = 60.0
EVENTS = {
    "QueueConfigurations": [
        {
            "QueueArn": "arn:minio:sqs::STOKER:webhook",
            "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        }
    ]
}
BODY = {
    "model": "uploaded",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 16,
}


@pytest.fixture
def address() -> str:
    """One that is free, which both sides have to know before they start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def minio_with_events(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Minio]:
    if executable() is None:
        pytest.skip("neither minio nor Go is on PATH: `make minio` says how to get it")
    webhook = {
        "ENABLE": "on",
        "ENDPOINT": f"http://{address}/v1/bucket-events",
        "AUTH_TOKEN": TOKEN,
        "QUEUE_DIR": str(tmp_path / "events"),
    }
    settings = {f"MINIO_NOTIFY_WEBHOOK_{name}_STOKER": value for name, value in webhook.items()}
    with running(tmp_path / "minio", **settings) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("STOKER_EVENTS_TOKEN", TOKEN)
        yield server


def imported(up: Up) -> None:
    """Returns when the only folder is a checkpoint."""
    deadline = time.monotonic() + IMPORT_TIMEOUT_S
    while True:
        (found,) = up.http.get("/v1/imports").json()["imports"] or [{"state": None}]
        if found["state"] == "imported":
            return
        assert time.monotonic() < deadline, found
        up.http.get("/v1/imports", params={"wait": "1"})


def test_an_upload_is_enough(
    minio_with_events: Minio, address: str, smollm2: Path, tmp_path: Path
) -> None:
    client = connect()
    client.create_bucket(Bucket="models")
    folder = tmp_path / "uploaded"
    folder.mkdir()
    manifest = {"name": "uploaded", "model": {"uri": "s3://models/smol"}}
    (folder / "function.yaml").write_text(yaml.safe_dump(manifest))
    runs = run_up(tmp_path / "home", listen=address, options=("--store", "s3://models"))
    up = next(runs)
    try:
        client.put_bucket_notification_configuration(
            Bucket="models", NotificationConfiguration=EVENTS
        )
        refused = up.http.post("/v1/bucket-events", json={"Records": []})
        assert refused.status_code == 403
        with pytest.raises(Exception, match="no folder models/smol"):
            up.deploy(folder)
        for path in sorted(smollm2.iterdir(), key=lambda path: path.stat().st_size):
            client.upload_file(str(path), "models", f"models/smol/{path.name}")
        imported(up)
        assert up.deploy(folder) == "uploaded-00001"
        answer = up.http.post("/v1/chat/completions", json=BODY).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
        client.delete_object(Bucket="models", Key="models/smol/tokenizer.json")
    finally:
        with pytest.raises(StopIteration):
            next(runs)
