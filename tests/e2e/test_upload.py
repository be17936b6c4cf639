"""A model's files are put into the bucket, and that is all: events tell the platform."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from e2e.conftest import EVENTS, deployed, imported, run_up
from stoker.checkpoints.bucket import connect
from support.minio import Minio

pytestmark = pytest.mark.model

BODY = {
    "model": "uploaded",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
    "max_tokens": 16,
}


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


def test_an_upload_with_a_manifest_is_a_function(
    minio_with_events: Minio, address: str, smollm2: Path, tmp_path: Path
) -> None:
    client = connect()
    client.create_bucket(Bucket="models")
    options = ("--store", "s3://models", "--deploy-uploads")
    runs = run_up(tmp_path / "home", listen=address, options=options)
    up = next(runs)
    try:
        client.put_bucket_notification_configuration(
            Bucket="models", NotificationConfiguration=EVENTS
        )
        client.put_object(Bucket="models", Key="models/smol/function.yaml", Body=b"name: uploaded")
        for path in smollm2.iterdir():
            client.upload_file(str(path), "models", f"models/smol/{path.name}")
        imported(up)
        deployed(up)
        answer = up.http.post("/v1/chat/completions", json=BODY).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]
    finally:
        with pytest.raises(StopIteration):
            next(runs)
