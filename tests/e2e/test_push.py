"""`stoker push` of single files and of other formats, to a real platform."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from e2e.conftest import Up
from gguf_files import make_gguf

TIMEOUT_S = 240
LAID_OUT = {"config.json", "model.safetensors", "model.stx"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "stoker.cli", *map(str, arguments)]


def environment(up: Up, scratch: Path) -> dict[str, str]:
    return os.environ | {"STOKER_URL": up.local.url, "TMPDIR": str(scratch)}


def stoker(up: Up, scratch: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(up, scratch),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def files_of(up: Up, name: str) -> set[str]:
    return {file["path"] for file in up.platform.checkpoint(name)["files"]}


def test_one_file_is_what_its_folder_is(up: Up, tmp_path: Path, scratch: Path) -> None:
    folder = tmp_path / "single"
    folder.mkdir()
    save_file({"w": torch.arange(1001.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    whole = json.loads(stoker(up, scratch, "push", folder, "whole", "-o", "json").stdout)
    (folder / "notes.txt").write_text("not the model's")
    done = stoker(up, scratch, "push", folder / "model.safetensors", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert "its name is single" in done.stderr
    assert json.loads(done.stdout)["digest"] == whole["digest"]
    assert files_of(up, "single") == LAID_OUT


def test_the_command_that_a_pickle_is_refused_with_makes_what_can_be_pushed(
    up: Up, tmp_path: Path, scratch: Path
) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    torch.save({"w": torch.arange(1001.0)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text("{}")
    refused = stoker(up, scratch, "push", folder / "pytorch_model.bin", "trained")
    assert refused.returncode == 1
    found = re.search(r"`python (-m stoker_loader [^`]*)`", refused.stderr)
    assert found is not None, refused.stderr
    conversion = [sys.executable, *shlex.split(found[1])]
    subprocess.run(conversion, cwd=scratch, capture_output=True, timeout=TIMEOUT_S, check=True)
    pushed = stoker(up, scratch, "push", scratch / "pytorch_model-safetensors", "trained")
    assert pushed.returncode == 0, pushed.stderr
    assert files_of(up, "trained") == LAID_OUT


def test_gguf_becomes_a_checkpoint_and_leaves_nothing_here(
    up: Up, tmp_path: Path, scratch: Path
) -> None:
    made = make_gguf(tmp_path / "downloads", quantised=True) / "tiny.gguf"
    file = made.rename(made.with_name("babble.gguf"))
    done = stoker(up, scratch, "push", file)
    assert done.returncode == 0, done.stderr
    assert "its name is babble" in done.stderr
    assert {*LAID_OUT, "tokenizer.json", "tokenizer_config.json"} <= files_of(up, "babble")
    assert list(scratch.iterdir()) == []
    assert [path.name for path in file.parent.iterdir()] == ["babble.gguf"]
    assert stoker(up, scratch, "checkpoints", "verify", "babble").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_a_conversion_finds_nothing_left(
    up: Up, tmp_path: Path, scratch: Path, number: signal.Signals
) -> None:
    file = make_gguf(tmp_path / "downloads") / "tiny.gguf"
    child = subprocess.Popen(
        command("push", file, "ended"),
        env=environment(up, scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert child.stderr.readline().startswith("converting ")  # which takes some seconds
    child.send_signal(number)
    _, said = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 130
    assert "Traceback" not in said
    assert list(scratch.iterdir()) == []
    assert stoker(up, scratch, "checkpoints", "describe", "ended").returncode == 3
