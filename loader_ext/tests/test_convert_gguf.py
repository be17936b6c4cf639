"""GGUF through Transformers: weights, configuration and tokenizer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import stoker_loader as sl
from gguf_files import make_gguf
from stoker_loader import errors
from stoker_loader.conversion import from_gguf


@pytest.mark.parametrize(
    ("quantised", "dtype", "wanted"),
    [(False, "f16", torch.float16), (True, None, torch.bfloat16)],
    ids=["float32 cast", "Q8_0"],
)
def test_gguf_is_unpacked_by_transformers(
    disk: Path, quantised: bool, dtype: str | None, wanted: torch.dtype
) -> None:
    source = make_gguf(disk / "source", quantised=quantised)
    report = sl.convert(source, disk / "made", dtype=dtype)
    assert report.source_format == "gguf"
    assert {"privileges", "limits", "audit hook"} <= set(report.walls)
    found = load_file(disk / "made" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {wanted}
    reference = AutoModelForCausalLM.from_pretrained(source, gguf_file="tiny.gguf", dtype=wanted)
    model = AutoModelForCausalLM.from_pretrained(disk / "made")
    assert model.config.dtype == wanted
    weights, wanted_weights = model.state_dict(), reference.state_dict()
    assert weights.keys() == wanted_weights.keys()
    assert all(torch.equal(weights[name], wanted_weights[name]) for name in weights)
    config = json.loads((disk / "made" / "config.json").read_text())
    assert "quantization_config" not in config
    tokenizer = AutoTokenizer.from_pretrained(disk / "made")
    assert (
        tokenizer("ab").input_ids
        == AutoTokenizer.from_pretrained(source, gguf_file="tiny.gguf")("ab").input_ids
    )
    assert [path.name for path in disk.iterdir() if path.name[0] == "."] == []


def test_files_of_whole_floats_stay_what_they_are(disk: Path) -> None:
    whole, packed = make_gguf(disk / "whole"), make_gguf(disk / "packed", quantised=True)
    assert from_gguf.usual_dtype(whole / "tiny.gguf") == "float32"
    assert from_gguf.usual_dtype(packed / "tiny.gguf") == "bfloat16"


def test_a_gguf_file_that_is_none(disk: Path) -> None:
    (disk / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(errors.ConversionFailedError, match=r"x\.gguf: Transformers cannot unpack"):
        sl.convert(disk / "x.gguf", disk / "made")
    assert [path.name for path in disk.iterdir() if path.name[0] == "."] == []


def test_a_missing_package_is_named(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_gguf(disk / "source")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    with pytest.raises(errors.MissingPackageError, match="needs gguf; install with: pip install"):
        sl.convert(source, disk / "made")
    assert [path.name for path in disk.iterdir() if path.name[0] == "."] == []


def test_weights_that_a_file_lacks_are_not_made_up(disk: Path) -> None:
    source = make_gguf(disk / "source") / "tiny.gguf"
    content = source.read_bytes()
    source.write_bytes(content.replace(b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight"))
    with pytest.raises(errors.ConversionFailedError, match=r"holds no .*mlp.up_proj.weight"):
        sl.convert(source, disk / "made")


# In place of Transformers: what a file could make of it that took it over, with all that it likes
# imported before the walls. It tells in an error how each attempt ended, by Python or by libc.
TAKEN_OVER = """
import ctypes, json, os, socket, threading
from types import SimpleNamespace as PreTrainedModel, SimpleNamespace as PreTrainedTokenizerFast
from types import SimpleNamespace as AutoTokenizer
libc = ctypes.CDLL(None, use_errno=True)

CALLS = {{name: getattr(libc, name) for name in ("socket", "connect", "fork", "open", "unlink")}}

class RefusedError(Exception):
    pass

def raw(name, *arguments):
    if CALLS[name](*arguments) < 0:
        raise RefusedError

ATTEMPTS = {{
    "socket": lambda: socket.socket(),
    "raw socket": lambda: raw("socket", 2, 1, 0),
    "connect": lambda: raw("connect", SOCKET, ADDRESS, 16),
    "process": lambda: os.fork(),
    "raw process": lambda: raw("fork"),
    "thread": lambda: threading.Thread(target=print).start(),
    "write": lambda: open({outside!r} + "/new", "w"),
    "upwards": lambda: open(FOLDER + "/../../new", "w"),
    "raw write": lambda: raw("open", {outside!r}.encode() + b"/new", 0o101, 0o600),
    "remove": lambda: os.remove({outside!r} + "/victim"),
    "raw remove": lambda: raw("unlink", {outside!r}.encode() + b"/victim"),
    "own file": lambda: open(FOLDER + "/mine", "w").close(),
    "raw own file": lambda: raw("open", FOLDER.encode() + b"/raw", 0o101, 0o600),
    "own folder": lambda: os.mkdir(FOLDER + "/folder"),
}}
SOCKET = socket.socket().detach()  # made before the walls: it has no way out either
ADDRESS = b"\\x02\\x00" + ({port}).to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)

def outcome(attempt):
    try:
        attempt()
    except BaseException as error:
        return type(error).__name__
    return "done"

class AutoModelForCausalLM:
    @staticmethod
    def from_pretrained(folder, **options):
        global FOLDER
        FOLDER = os.environ["TMPDIR"] + "/model"
        found = {{name: outcome(attempt) for name, attempt in ATTEMPTS.items()}}
        found["token"] = os.environ.get("HF_TOKEN", "none")
        raise ValueError(json.dumps(found))
"""
PLANTING = """
import ctypes
symlink = ctypes.CDLL(None).symlink
from types import SimpleNamespace as PreTrainedModel, SimpleNamespace as PreTrainedTokenizerFast
from types import SimpleNamespace as AutoTokenizer

class AutoModelForCausalLM:
    from_pretrained = classmethod(lambda cls, *_, **options: (cls(), {{"missing_keys": ()}}))

    def save_pretrained(self, folder):
        (folder / "config.json").write_text("{{}}")
        symlink({outside!r}.encode() + b"/victim", str(folder).encode() + b"/tokenizer.json")
"""


def taken_over(disk: Path, code: str, *, port: int = 0) -> subprocess.CompletedProcess[str]:
    """The command on a good file, where `transformers` is this code."""
    outside, library = disk / "outside", disk / "library" / "transformers"
    (library / "utils").mkdir(parents=True)
    outside.mkdir()
    (outside / "victim").write_text("precious")
    (library / "__init__.py").write_text(code.format(outside=str(outside), port=port))
    (library / "utils" / "__init__.py").write_text("")
    (library / "utils" / "logging.py").write_text(
        "disable_progress_bar = set_verbosity_error = lambda: None"
    )
    source = make_gguf(disk / "source")
    (source / "tokenizer.json").write_text("{}")
    found = subprocess.run(
        [sys.executable, "-m", "stoker_loader", "convert", source, disk / "made"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(library.parent), "HF_TOKEN": "secret"},
    )
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert sorted(path.name for path in disk.iterdir()) == ["library", "outside", "source"]
    return found


@pytest.mark.skipif(
    subprocess.run(["unshare", "--user", "--net", "--mount", "true"], check=False).returncode != 0,
    reason="this kernel or container allows no namespaces",
)
def test_a_reader_that_a_file_took_over_stays_behind_the_walls(disk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        done = taken_over(disk, TAKEN_OVER, port=server.getsockname()[1])
        with pytest.raises(BlockingIOError):
            server.accept()
    found = json.loads(done.stderr[done.stderr.index("{") : done.stderr.index("}") + 1])
    by_hook, by_kernel = "WallTouchedError", "RefusedError"
    assert found == {
        "socket": by_hook,
        "raw socket": by_kernel,
        "connect": by_kernel,
        "process": by_hook,
        "raw process": by_kernel,
        "thread": "RuntimeError",
        "write": by_hook,
        "upwards": by_hook,
        "raw write": by_kernel,
        "remove": by_hook,
        "raw remove": by_kernel,
        "own file": "done",
        "raw own file": "done",
        "own folder": "done",
        "token": "none",
    }


def test_a_link_that_a_reader_left_is_not_followed(disk: Path) -> None:
    done = taken_over(disk, PLANTING)
    assert done.returncode == 1
    assert "its reader made 'tokenizer.json', which is no plain file" in done.stderr
