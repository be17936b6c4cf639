"""What `stoker push` makes of a path: which files go, under which name, and what it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stoker.checkpoints.files import NAME
from stoker.cli import app as cli
from stoker.client.failure import ExitCode
from stoker.client.push_model import default_name
from stoker.errors import BadRequest

Stoker = Callable[..., Result]
TEXT = '{"architectures": ["LlamaForCausalLM"], "vocab_size": 49152}'
INDEX = "model.safetensors.index.json"
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


def write(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A text model's folder, among other things."""
    folder = write(
        tmp_path / "smol",
        *("model.safetensors", "other.safetensors", "pytorch_model.bin", "smol.gguf"),
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *("chat_template.jinja", "1_Pooling/config.json", "merges.txt"),
        *("notes.txt", "private.json", ".hidden_config.json", "README.md", "2023/config.json"),
    )
    (folder / "config.json").write_text(TEXT)
    return folder


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def said(result: Result) -> str:
    """The error of a command that failed as it should."""
    assert result.exit_code == ExitCode.FAILED, result.output
    return " ".join(result.stderr.split())


# --- one file ---------------------------------------------------------------------------------


def test_a_file_takes_along_what_its_model_needs_and_nothing_else(
    stoker: Stoker, fake: Any, model: Path
) -> None:
    result = stoker("push", model / "model.safetensors", "smol", "-o", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["name"] == "smol"
    assert sorted(fake.sent) == [
        *("1_Pooling/config.json", "chat_template.jinja", "config.json"),
        *("generation_config.json", "merges.txt", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]


def test_a_file_is_found_from_where_one_is(
    stoker: Stoker, fake: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    result = stoker("push", "other.safetensors")
    assert result.exit_code == 0, result.stderr
    assert "its name is other" in result.stderr
    assert "other.safetensors" in fake.sent
    assert "model.safetensors" not in fake.sent


def test_an_index_takes_its_shards_along(stoker: Stoker, fake: Any, model: Path) -> None:
    write(model, *SHARDS, "model-00003-of-00003.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))
    assert stoker("push", model / INDEX, "smol").exit_code == 0
    assert {path for path in fake.sent if "safetensors" in path} == {INDEX, *SHARDS}
    assert "config.json" in fake.sent


def test_what_an_index_lacks_is_named(stoker: Stoker, model: Path) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}))
    write(model, SHARDS[0])
    assert f"1 of them are not there: {SHARDS[1]}" in said(stoker("push", model / INDEX))
    (model / INDEX).write_text("{}")
    assert "has no weight_map" in said(stoker("push", model / INDEX))


def test_one_shard_is_not_a_checkpoint(stoker: Stoker, fake: Any, model: Path) -> None:
    write(model, *SHARDS)
    error = said(stoker("push", model / SHARDS[0]))
    assert f"is one of 2 shards; name {model}, which" in error
    write(model, INDEX)
    assert f"name {model / INDEX}, which" in said(stoker("push", model / SHARDS[0]))
    assert fake.sent == []


def test_what_a_model_lacks_beside_its_weights_is_named(
    stoker: Stoker, fake: Any, model: Path
) -> None:
    (model / "tokenizer.json").unlink()
    error = said(stoker("push", model / "model.safetensors"))
    assert f"tokenizer.json is missing, which is expected at {model / 'tokenizer.json'}" in error
    (model / "config.json").unlink()
    error = said(stoker("push", model / "model.safetensors"))
    assert f"config.json is missing, which is expected at {model / 'config.json'}" in error
    assert fake.sent == []


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_a_pickle_is_refused_with_the_command_that_converts_it(
    stoker: Stoker, fake: Any, tmp_path: Path, suffix: str
) -> None:
    folder = write(tmp_path / "my model", f"weights{suffix}", "training_args.bin")
    file = folder / f"weights{suffix}"
    command = f"`python -m stoker_loader convert '{file}' weights-safetensors`"
    assert command in said(stoker("push", file, "mine"))
    (folder / "config.json").write_text(TEXT)  # which comes along with its folder alone
    command = f"`python -m stoker_loader convert '{folder}' weights-safetensors`"
    assert command in said(stoker("push", file, "mine"))
    assert fake.sent == []


def test_a_folder_of_gguf_names_the_file_to_push(stoker: Stoker, fake: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "models", "a.gguf", "config.json")
    only = said(stoker("push", folder))
    assert f"push the file, which converts it: `stoker push {folder / 'a.gguf'} NAME`" in only
    write(folder, *(f"b-0000{n}-of-00003.gguf" for n in (1, 2, 3)))
    several = said(stoker("push", folder))
    first = folder / "b-00001-of-00003.gguf"
    assert re.findall(r"`stoker push (\S+) NAME`", several) == [f"{folder / 'a.gguf'}", f"{first}"]
    assert fake.sent == []


def test_a_file_of_another_kind_and_an_empty_folder(stoker: Stoker, tmp_path: Path) -> None:
    write(tmp_path, "notes.txt")
    assert "expected a folder, or a file *.safetensors" in said(
        stoker("push", tmp_path / "notes.txt")
    )
    (tmp_path / "empty").mkdir()
    assert "empty holds no files" in said(stoker("push", tmp_path / "empty"))


def test_a_name_that_nobody_could_ask_for(stoker: Stoker, fake: Any, model: Path) -> None:
    assert "'a/b' is not a checkpoint's name" in said(stoker("push", model, "a/b"))
    assert fake.uploads == {}


# --- GGUF: what is found before anything is converted -----------------------------------------


def test_a_missing_package_is_named_with_both_ways_out(
    stoker: Stoker, model: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "smol.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    error = said(stoker("push", model / "smol.gguf"))
    assert "needs gguf; install with: pip install gguf" in error
    assert "`python -m stoker_loader convert" in error
    assert error.endswith("and push smol-safetensors")
    assert list(scratch.iterdir()) == []


def test_what_is_only_called_gguf(stoker: Stoker, model: Path) -> None:
    assert "is not GGUF, whatever its name says" in said(stoker("push", model / "smol.gguf"))


def test_nothing_is_converted_for_a_platform_that_is_not_there(
    nowhere: str, model: Path, scratch: Path
) -> None:
    (model / "smol.gguf").write_bytes(b"GGUF" + bytes(100))
    result = CliRunner().invoke(cli, ["push", str(model / "smol.gguf"), "--url", nowhere])
    assert result.exit_code == ExitCode.NOT_REACHABLE
    assert "converting" not in result.stderr
    assert list(scratch.iterdir()) == []


def test_a_scratch_folder_that_cannot_be_made(
    stoker: Stoker, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "smol.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setenv("TMPDIR", str(model / "nowhere"))
    assert "TMPDIR may name another place" in said(stoker("push", model / "smol.gguf"))


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("smol/model.safetensors", "smol"),
        (f"smol/{INDEX}", "smol"),
        ("smol/tuned.safetensors", "tuned"),
        ("smol/SmolLM2-1.7B.Q4_K_M.gguf", "SmolLM2-1.7B.Q4_K_M"),
        ("smol/big-00002-of-00003.gguf", "big"),
        ("smol/my model (1).gguf", "my-model-1"),
        ("Llama 3.1/x/config.json", "config"),
        (f"smol/{'x' * 200}.gguf", "x" * 128),
    ],
)
def test_a_checkpoint_is_named_after_its_file(tmp_path: Path, path: str, name: str) -> None:
    write(tmp_path, path)
    assert default_name(tmp_path / path) == name
    assert NAME.fullmatch(name)


def test_a_folder_gives_its_own_name(
    stoker: Stoker, fake: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_name(write(model.parent / "Llama-3.1 (new)", "x")) == "Llama-3.1-new"
    monkeypatch.chdir(model)
    result = stoker("push", ".")
    assert result.exit_code == 0, result.stderr
    assert "its name is smol" in result.stderr
    assert stoker("push", ".", "-o", "json").stdout.startswith("{")
    with pytest.raises(BadRequest, match="makes no name"):
        default_name(Path("/"))
