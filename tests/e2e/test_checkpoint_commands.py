"""`stoker checkpoints ...` against a real platform, as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from e2e.conftest import Up
from stoker.cli import app


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file({"w": torch.arange(1000.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def stoker(up: Up, *arguments: str, **more: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", up.local.url], **more)


def test_a_checkpoint_from_its_push_to_its_end(up: Up, model: Path) -> None:
    pushed = json.loads(stoker(up, "push", str(model), "tiny", "-o", "json").stdout)
    listed = json.loads(stoker(up, "checkpoints", "list", "-o", "json").stdout)
    assert pushed in listed
    text = stoker(up, "checkpoints", "list").stdout
    assert "CHECKPOINT" in text
    assert "tiny" in text
    assert pushed["digest"][:19] in text
    described = json.loads(stoker(up, "checkpoints", "describe", "tiny", "-o", "json").stdout)
    assert (described["names"], described["revisions"]) == (["tiny"], [])
    assert "model.safetensors" in stoker(up, "checkpoints", "describe", "tiny").stdout
    verified = stoker(up, "checkpoints", "verify", f"tiny@{pushed['digest']}", "-o", "json")
    assert json.loads(verified.stdout)["digest"] == pushed["digest"]
    refused = stoker(up, "checkpoints", "delete", "tiny", input="n\n")
    assert refused.exit_code == 1
    assert "Delete checkpoint tiny" in refused.stderr
    assert stoker(up, "checkpoints", "delete", "tiny", "-y").exit_code == 0
    gone = stoker(up, "checkpoints", "describe", "tiny")
    assert gone.exit_code == 3
    assert "no checkpoint 'tiny'" in gone.stderr
    assert json.loads(stoker(up, "checkpoints", "gc", "--dry-run", "-o", "json").stdout) == []


@pytest.mark.model
def test_what_a_function_runs_is_not_deleted(up: Up, chat: str) -> None:
    *_, latest = up.http.get(f"/v1/functions/{chat}/revisions").json()["revisions"]
    kept = stoker(up, "checkpoints", "delete", latest["checkpoint"]["digest"], "-y")
    assert kept.exit_code == 1
    assert f"{chat}-0" in kept.stderr
    assert "delete the function first" in kept.stderr
