"""Deploy and push: what is hashed, what is sent, what is not sent again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from typer.testing import Result

from stoker.client.failure import ExitCode
from stoker.client.http import Platform
from stoker.client.push import push
from stoker.errors import BadRequest, CheckpointInvalid
from stoker.local_files import LocalFile

Stoker = Callable[..., Result]


def quiet(stage: str, bytes_done: int, bytes_total: int) -> None:
    return


def test_deploy_uploads_sources_then_sends_the_manifest(
    stoker: Stoker, fake: Any, handler_folder: Path
) -> None:
    result = stoker("deploy", handler_folder)
    assert result.exit_code == 0, result.stderr
    assert fake.sent == ["handler.py"]
    assert result.stdout == "hello  revision hello-00001  created\n"
    assert "stoker invoke hello" in result.stderr
    digest = fake.manifests["hello"]["source"]["digest"]
    assert digest.startswith("blake3:")


def test_deploy_of_the_same_content_sends_nothing_again(
    stoker: Stoker, fake: Any, handler_folder: Path
) -> None:
    assert stoker("deploy", handler_folder / "function.yaml").exit_code == 0
    fake.sent.clear()
    again = stoker("deploy", handler_folder)
    assert again.stdout.endswith("unchanged\n")
    assert fake.sent == []
    (handler_folder / "handler.py").write_text("def predict(payload): return 1\n")
    assert stoker("deploy", handler_folder).stdout.endswith("created\n")
    assert fake.sent == ["handler.py"]


def test_deploy_brings_a_local_checkpoint(stoker: Stoker, fake: Any, tmp_path: Path) -> None:
    model = tmp_path / "weights"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"w" * 1000)
    (model / "config.json").write_text("{}")
    folder = tmp_path / "talk"
    folder.mkdir()
    (folder / "function.yaml").write_text("name: talk\nmodel: {uri: ../weights}\n")
    result = stoker("deploy", folder, "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert sorted(fake.sent) == ["config.json", "model.safetensors"]
    assert fake.manifests["talk"]["model"]["digest"].startswith("blake3:")
    assert json.loads(result.stdout)["revision"] == "talk-00001"
    assert "stoker chat talk" in result.stderr


def test_an_invalid_manifest_is_wrong_use(stoker: Stoker, handler_folder: Path) -> None:
    (handler_folder / "function.yaml").write_text("name: Hello\nruntme: {handler: handler.py}\n")
    result = stoker("deploy", handler_folder)
    assert result.exit_code == ExitCode.USAGE
    assert "runtime" in result.stderr
    assert "'Hello' is not a name" in result.stderr  # every problem is told, not the first alone


def test_push_reports_every_stage_and_returns_the_artifact(
    fake: Any, url: str, tmp_path: Path
) -> None:
    heard: list[tuple[str, int, int]] = []
    file = write(tmp_path / "a.bin", b"x" * 10)
    with Platform(url) as platform:
        made = push(
            platform,
            [file],
            kind="checkpoint",
            name="mine",
            report=lambda stage, done, total: heard.append((stage, done, total)),
        )
    assert made["name"] == "mine"
    assert heard == [("hashing", 10, 10), ("uploading", 10, 10), ("layout", 1, 2)]


def test_push_sends_only_what_is_missing(fake: Any, url: str, tmp_path: Path) -> None:
    known, new = write(tmp_path / "known", b"1"), write(tmp_path / "new", b"2")
    fake.stored[blake3(b"1").hexdigest()] = b"1"
    with Platform(url) as platform:
        push(platform, [known, new], kind="source", report=quiet)
    assert fake.sent == ["new"]


def test_push_raises_what_the_commit_ends_with(fake: Any, url: str, tmp_path: Path) -> None:
    message = "model.safetensors is cut off at byte 7"
    fake.commit_fails = {"error": {"message": message, "code": "checkpoint_invalid"}}
    with Platform(url) as platform, pytest.raises(CheckpointInvalid, match="byte 7"):
        push(platform, [write(tmp_path / "a", b"1")], kind="checkpoint", report=quiet)


@pytest.mark.parametrize("promised", [9, 11], ids=["grew", "shrank"])
def test_push_notices_a_file_that_changes(url: str, tmp_path: Path, promised: int) -> None:
    file = LocalFile("a", write(tmp_path / "a", b"x" * 10).location, promised)
    with Platform(url) as platform, pytest.raises(BadRequest, match="changed while it was read"):
        push(platform, [file], kind="source", report=quiet)


def test_push_of_a_folder_that_is_not_there(stoker: Stoker) -> None:
    result = stoker("push", "/nonexistent", "name")
    assert result.exit_code == ExitCode.USAGE
    assert "/nonexistent" in result.stderr


def write(path: Path, content: bytes) -> LocalFile:
    path.write_bytes(content)
    return LocalFile(path.name, path, len(content))
