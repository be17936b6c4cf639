"""`stoker cache ...`, a manifest's `cache` section and the cache's metrics, over a real bucket."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from e2e.conftest import Up, run_up
from stoker.cli import app
from stoker.client.push import push
from stoker.local_files import model_files
from stoker.node.dram import lockable_bytes
from support.handlers import write_handler
from support.minio import executable, running

SOON_S = 30.0
DRAM_BYTES = 100 << 20
SUMS = """
class Handler:
    def setup(self, context):
        self.total = float(context.load_tensors()["w"].sum())

    def predict(self, payload):
        return self.total
"""


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Up]:
    """A platform over a bucket of its own, with a budget in memory."""
    if executable() is None:
        pytest.skip("neither minio nor Go is on PATH: `make minio` says how to get it")
    from stoker.checkpoints.bucket import connect

    with running(tmp_path / "minio") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        connect().create_bucket(Bucket="models")
        options = ("--store", "s3://models", "--cache-size", "100Mi", "--dram-size", "100Mi")
        yield from run_up(tmp_path / "home", options=options)


def stoker(up: Up, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--url", up.local.url])


def copies(up: Up) -> dict[str, dict[str, Any]]:
    """The named copies of the only node."""
    rows = json.loads(stoker(up, "cache", "list", "-o", "json").stdout)
    return {row["name"]: row for row in rows if row["name"]}


def until(up: Up, name: str, **facts: object) -> dict[str, Any]:
    """The copy once these are so, which no event tells a client of."""
    deadline = time.monotonic() + SOON_S
    while True:
        found = copies(up).get(name, {})
        if found and all(found[key] == value for key, value in facts.items()):
            return found
        assert time.monotonic() < deadline, (found, facts)
        time.sleep(0.05)


def function(up: Up, folder: Path, name: str, **sections: object) -> Path:
    """A handler that sums the weights of a small model, which is pushed under its name."""
    root = write_handler(folder / name, SUMS)
    weights = root / "weights"
    weights.mkdir()
    save_file({"w": torch.full((1 << 20,), float(len(name)))}, weights / "model.safetensors")
    (weights / "config.json").write_text("{}")
    push(up.platform, model_files(weights), kind="checkpoint", name=name, report=lambda *_: None)
    manifest = {
        "name": name,
        "model": {"uri": "./weights"},
        "runtime": {"engine": "handler", "handler": "handler.py"},
        **sections,
    }
    (root / "function.yaml").write_text(yaml.safe_dump(manifest))
    return root


def metrics(up: Up) -> dict[str, float]:
    """The cache's, by name and labels without the node's."""
    found = {}
    for line in up.platform.metrics().splitlines():
        if match := re.fullmatch(r"stoker_(\w+)\{node=\"([^\"]+)\",?(.*)\} (\S+)", line):
            assert match[2] == os.uname().nodename
            found[f"{match[1]} {match[3]}"] = float(match[4])
    return found


@pytest.mark.skipif(
    lockable_bytes(DRAM_BYTES) < DRAM_BYTES, reason="this process may not lock memory"
)
def test_what_a_function_pins_is_there_before_its_first_request(up: Up, tmp_path: Path) -> None:
    up.deploy(function(up, tmp_path, "sums", cache={"pin": "dram"}))
    copy = until(up, "sums", state="whole", pinned=True)
    size_bytes = copy["ssd_bytes"]
    until(up, "sums", locked_bytes=size_bytes, dram_bytes=size_bytes, why=["function sums"])
    assert "function sums" in stoker(up, "cache", "list").stdout
    kept = stoker(up, "cache", "evict", "sums")
    assert kept.exit_code == 1
    assert "pinned on this node" in kept.stderr
    assert up.invoke("sums", None).json() == 4.0 * (1 << 20)
    startup = up.platform.function("sums")["last_startup"]
    assert {phase["name"]: phase["tier"] for phase in startup["phases"]}["fetch"] is None

    found = metrics(up)
    assert found['cache_bytes tier="ssd"'] >= copy["ssd_bytes"]
    assert found['cache_bytes tier="dram"'] >= copy["ssd_bytes"]
    assert found['cache_hits_total tier="dram"'] == 1
    assert found['fetched_bytes_total source="bucket"'] >= copy["ssd_bytes"]

    up.scale("sums", 0)
    up.deploy(function(up, tmp_path / "again", "sums"))
    until(up, "sums", pinned=False, why=[])
    assert stoker(up, "cache", "evict", "sums").exit_code == 0
    assert "sums" not in copies(up)
    assert metrics(up)['cache_evictions_total reason="asked",tier="ssd"'] == 1


def test_a_person_pins_verifies_and_lets_go(up: Up, tmp_path: Path) -> None:
    up.deploy(function(up, tmp_path, "sums"))
    assert copies(up) == {}, "nothing asks for it"
    assert stoker(up, "cache", "pin", "sums").exit_code == 0
    copy = until(up, "sums", state="whole", pinned=True)
    assert copy["why"] == ["pinned by hand"]
    verified = stoker(up, "cache", "verify", "sums")
    assert (verified.exit_code, "verified" in verified.stderr) == (0, True)
    weights = up.local.home / "cache" / copy["digest"].removeprefix("blake3:") / "model.safetensors"
    weights.chmod(0o600)
    with weights.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"rotten")
    found = stoker(up, "cache", "verify", "sums")
    assert found.exit_code == 1
    assert "model.safetensors" in found.stderr
    assert up.invoke("sums", None).json() == 4.0 * (1 << 20), "brought anew"
    until(up, "sums", state="whole")
    assert stoker(up, "cache", "verify", "sums").exit_code == 0
    up.scale("sums", 0)
    assert stoker(up, "cache", "unpin", "sums").exit_code == 0
    until(up, "sums", pinned=False, why=[])
    assert stoker(up, "cache", "evict", "sums").exit_code == 0
    missing = stoker(up, "cache", "verify", "sums")
    assert missing.exit_code == 3
    assert "no whole copy" in missing.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("pin", "nothing"), 3, "no checkpoint 'nothing'"),
        (("pin", "nothing", "--tier", "gpu"), 2, "neither ssd nor dram"),
        (("pin", "sums", "--node", "elsewhere"), 3, "no node 'elsewhere'"),
    ],
)
def test_what_cannot_be_pinned_is_said(
    up: Up, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    up.deploy(function(up, tmp_path, "sums"))
    refused = stoker(up, "cache", *arguments)
    assert refused.exit_code == code
    assert message in refused.stderr
