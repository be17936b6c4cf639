"""Conversions: every format to the same bytes, whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import stoker_loader as sl
from stoker_loader import errors
from stoker_loader.conversion.staging import staging

COMMAND = [sys.executable, "-m", "stoker_loader", "convert"]


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name])
        for name in wanted
    )


def left_behind(disk: Path) -> list[str]:
    return sorted(path.name for path in disk.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("kind", ["decoder", "sharded"])
def test_safetensors_are_laid_out(kind: str, disk: Path, request: pytest.FixtureRequest) -> None:
    source, tensors = request.getfixturevalue(kind)
    report = sl.convert(source, disk / "made")
    assert same(load_file(disk / "made" / "model.safetensors"), tensors)
    assert (report.source_format, report.walls) == ("safetensors", ())
    assert report.layout == sl.layout(source, disk / "laid")  # bit for bit what layout makes
    assert report.layout.digest == sl.digest(disk / "made")
    assert left_behind(disk) == []


def test_floats_are_cast_and_the_configuration_says_so(
    decoder: tuple[Path, dict[str, torch.Tensor]], disk: Path
) -> None:
    source, tensors = decoder
    others = {
        "steps": torch.arange(5),
        "scaled": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "f64": torch.rand(3, dtype=torch.float64),
    }
    save_file(tensors | others, source / "model.safetensors", metadata={"format": "pt", "a": "b"})
    config = {"torch_dtype": "bfloat16", "hidden_size": 64}
    (source / "config.json").write_text(json.dumps(config))
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "vocab.txt").write_text("a")
    (source / "tf_model.h5").write_text("weights of another library")
    report = sl.convert(source, disk / "made", dtype="f32")
    found = load_file(disk / "made" / "model.safetensors")
    wanted = {name: tensor.float() for name, tensor in (tensors | others).items()}
    assert same(found, wanted | {name: others[name] for name in ("steps", "scaled")})
    assert json.loads((disk / "made" / "config.json").read_text()) == config | {
        "torch_dtype": "float32"
    }
    assert json.loads((source / "config.json").read_text()) == config
    assert (disk / "made" / "tokenizer" / "vocab.txt").read_text() == "a"
    assert report.skipped_files == ("tf_model.h5",)
    with sl.open(disk / "made") as checkpoint:
        assert checkpoint.metadata["a"] == "b"


def test_a_value_that_a_cast_would_make_infinite_is_an_error(disk: Path) -> None:
    tensors = {"fits": torch.tensor([6e4, float("inf"), float("nan")]), "w": torch.tensor([7e4])}
    save_file(tensors, disk / "x.safetensors")
    with pytest.raises(errors.EntryRefusedError, match=r"'w': has values beyond torch\.float16"):
        sl.convert(disk / "x.safetensors", disk / "made", dtype="f16")
    assert left_behind(disk) == []
    sl.convert(disk / "x.safetensors", disk / "made", dtype="bf16")
    found = sl.load_file(disk / "made")
    assert found["fits"].isinf().tolist() == [False, True, False]


WITHOUT_LIBRARIES = """
import sys
for name in ("torch", "numpy", "safetensors", "transformers", "rich"):
    sys.modules[name] = None  # as if they were not installed
import stoker_loader
print(stoker_loader.convert(sys.argv[1], sys.argv[3]).layout.digest.root)
try:
    stoker_loader.convert(sys.argv[2], sys.argv[4])
except stoker_loader.LoaderError as error:
    print(error)
"""


def test_safetensors_are_converted_without_any_library(
    decoder: tuple[Path, dict], disk: Path
) -> None:
    torch.save({"a": torch.ones(2)}, disk / "model.pt")
    command = [sys.executable, "-c", WITHOUT_LIBRARIES, decoder[0], disk / "model.pt"]
    done = subprocess.run([*command, disk / "one", disk / "two"], capture_output=True, text=True)
    root, missing = done.stdout.splitlines()
    assert root == sl.digest(disk / "one").root
    assert missing == "converting this needs torch; install with: pip install torch"


@pytest.mark.parametrize("limit", ["64k", "700k"], ids=["reading", "laying out"])
def test_a_full_disk_is_an_error_and_leaves_nothing(disk: Path, limit: str) -> None:
    """The weights need 512 KiB, once to be read and once to be laid out."""
    torch.save({"w": torch.zeros(1 << 17)}, disk / "model.pt")
    small = disk / "small"
    small.mkdir()
    shell = f"mount -t tmpfs -o size={limit} none $1 && shift && $@; echo $?; ls -A {small}"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh", small]
    done = subprocess.run(
        [*unshare, *COMMAND, disk / "model.pt", small / "made"], capture_output=True, text=True
    )
    if "unshare" in done.stderr:
        pytest.skip("this kernel or container allows no namespaces")
    assert done.stdout == "1\n"
    assert "No space left on device" in done.stderr


def test_what_cannot_be_told_apart(disk: Path) -> None:
    with pytest.raises(errors.CheckpointNotFoundError):
        sl.convert(disk / "gone", disk / "made")
    with pytest.raises(errors.CheckpointNotFoundError, match="the source's path is empty"):
        sl.convert("", disk / "made")
    source = disk / "source"
    source.mkdir()
    (source / "training_args.bin").write_bytes(b"\x80")
    with pytest.raises(errors.SourceFormatError, match=r"holds no \.safetensors, \.gguf, \.bin"):
        sl.convert(source, disk / "made")
    for name in ("a.gguf", "b.gguf"):
        (source / name).write_bytes(b"GGUF")
    with pytest.raises(errors.SourceFormatError, match=r"holds a\.gguf, b\.gguf.*name one file"):
        sl.convert(source, disk / "made")
    with pytest.raises(errors.UnsupportedDtypeError, match="choose one of bf16, f16, f32"):
        sl.convert(source, disk / "made", dtype="int8")  # type: ignore[arg-type]
    (disk / "text").write_text("no weights")
    with pytest.raises(errors.HeaderError):
        sl.convert(disk / "text", disk / "made")
    assert left_behind(disk) == []


def test_what_exists_is_never_touched(decoder: tuple[Path, dict], disk: Path) -> None:
    (disk / "made").mkdir()
    (disk / "made" / "mine").write_text("precious")
    with pytest.raises(errors.DestinationExistsError):
        sl.convert(decoder[0], disk / "made")
    assert [path.name for path in (disk / "made").iterdir()] == ["mine"]
    (disk / "link").symlink_to(disk / "nowhere")
    with pytest.raises(errors.DestinationExistsError):
        sl.convert(decoder[0], disk / "link")


@pytest.mark.parametrize("below", ["made", "folder/made"])
def test_a_file_where_a_folder_must_be_is_named(
    decoder: tuple[Path, dict], disk: Path, below: str
) -> None:
    (disk / "text").write_text("precious")
    with pytest.raises(errors.StorageError, match=f"{disk / 'text'} is no directory") as caught:
        sl.convert(decoder[0], disk / "text" / below)
    assert caught.value.file == str(disk / "text" / below)
    assert (disk / "text").read_text() == "precious"
    assert left_behind(disk) == []


def test_one_conversion_to_a_destination_at_a_time(decoder: tuple[Path, dict], disk: Path) -> None:
    with staging(disk / "made") as folder:
        (folder / "half").write_text("work of the other")
        with pytest.raises(errors.ConversionBusyError, match="another conversion is writing it"):
            sl.convert(decoder[0], disk / "made")
        assert (folder / "half").exists()
    sl.convert(decoder[0], disk / "made")
    assert left_behind(disk) == []


@pytest.mark.parametrize("stage", ["read", "layout"])
def test_what_progress_raises_stops_it(decoder: tuple[Path, dict], disk: Path, stage: str) -> None:
    def stop(at: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        if at == stage:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        sl.convert(decoder[0], disk / "made", dtype="f16", progress=stop)
    assert not (disk / "made").exists()
    assert left_behind(disk) == []


def pickled(source: Path) -> dict[str, torch.Tensor]:
    """A directory that takes two steps to convert."""
    source.mkdir()
    tensors = {f"w.{number}": torch.full((1 << 18,), float(number)) for number in range(16)}
    torch.save(tensors, source / "pytorch_model.bin")
    return tensors


# Stops itself for good at the first report of a stage: what is killed then is half-made.
STOPPING = """
import os, signal, sys, stoker_loader
def stop(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGSTOP)
stoker_loader.convert(sys.argv[1], sys.argv[2], progress=stop)
"""


@pytest.mark.parametrize("stage", ["read", "layout"])
def test_a_killed_conversion_leaves_no_destination_and_the_next_one_works(
    disk: Path, stage: str
) -> None:
    source, made = disk / "source", disk / "made"
    tensors = pickled(source)
    child = subprocess.Popen([sys.executable, "-c", STOPPING, str(source), str(made), stage])
    os.waitpid(child.pid, os.WUNTRACED)
    assert left_behind(disk) == [".made.converting"]
    with pytest.raises(errors.ConversionBusyError):
        sl.convert(source, made)
    child.kill()
    child.wait()
    assert not made.exists()
    assert left_behind(disk) == [".made.converting"]
    sl.convert(source, made)
    assert same(sl.load_file(made), tensors)
    assert left_behind(disk) == []


def test_the_command(disk: Path) -> None:
    source = disk / "source"
    tensors = pickled(source)
    (source / "optimizer.pt").write_bytes(b"\x80")
    done = subprocess.run([*COMMAND, source, disk / "made"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rest = done.stdout.splitlines()
    digest = sl.digest(disk / "made")
    size_bytes = sum(file.size_bytes for file in digest.files)
    assert first == f"{disk / 'made'}: 16 tensors, {size_bytes} bytes, {digest.root}"
    assert "left out, as it is no part of it: 'optimizer.pt'" in rest
    assert same(sl.load_file(disk / "made"), tensors)
    again = subprocess.run([*COMMAND, source, disk / "made"], capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.endswith("nothing is ever written over it; name another destination\n")
    wrong = subprocess.run([*COMMAND, source], capture_output=True, text=True)
    assert wrong.returncode == 2


# The command, which stands still at its first report of progress.
STANDING = """
import os, signal, sys
from stoker_loader import __main__ as command
convert = command.convert
def stand(stage, done, total):
    os.kill(os.getpid(), signal.SIGSTOP)
command.convert = lambda *paths, **options: convert(*paths, **options | {"progress": stand})
sys.exit(command.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_ends_the_command_finds_nothing_left(disk: Path, number: signal.Signals) -> None:
    source = disk / "source"
    pickled(source)
    heeding = ["env", f"--default-signal={number.name[3:]}"]  # these tests may run under nohup
    command = [*heeding, sys.executable, "-c", STANDING, "convert", source, disk / "made"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE)
    os.waitpid(child.pid, os.WUNTRACED)
    assert left_behind(disk) == [".made.converting"]
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)
    _, said = child.communicate()
    assert child.returncode == 128 + number
    assert said.decode() == f"stopped; {disk / 'made'} was not made\n"
    assert not (disk / "made").exists()
    assert left_behind(disk) == []


# The command, to which a terminal that is closed sends a signal each time when it tidies up.
TIDYING = """
import os, shutil, signal, sys
from stoker_loader import __main__ as command
rmtree = shutil.rmtree
def interrupted(*arguments, **options):
    signal.raise_signal(signal.SIGHUP)
    rmtree(*arguments, **options)
shutil.rmtree = interrupted
sys.exit(command.main())
"""


def test_a_command_that_is_ended_while_it_tidies_up_does_so_all_the_same(disk: Path) -> None:
    source = disk / "source"
    pickled(source)
    heeding = ["env", "--default-signal=HUP"]
    command = [*heeding, sys.executable, "-c", TIDYING, "convert", source, disk / "made"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (129, f"stopped; {disk / 'made'} is there\n")
    assert sl.load_file(disk / "made").keys() == {f"w.{number}" for number in range(16)}
    assert left_behind(disk) == []


def test_the_command_shows_progress_on_a_terminal(disk: Path) -> None:
    source = disk / "source"
    pickled(source)
    leader, follower = os.openpty()
    child = subprocess.Popen([*COMMAND, source, disk / "made"], stderr=follower)
    os.close(follower)
    seen = read_all(leader)
    assert child.wait() == 0
    assert seen.lstrip().startswith(b"read ")
    assert b"layout 100 % of" in seen
    assert left_behind(disk) == []


def read_all(descriptor: int) -> bytes:
    content = b""
    try:
        while piece := os.read(descriptor, 4096):
            content += piece
    except OSError:  # EIO: the last process with the terminal is gone
        pass
    os.close(descriptor)
    return content


def test_a_model_converted_from_pickles_answers_as_before(disk: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(disk / "source")
    (disk / "source" / "model.safetensors").unlink()
    torch.save(model.state_dict(), disk / "source" / "pytorch_model.bin")
    report = sl.convert(disk / "source", disk / "made")
    assert report.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    made = AutoModelForCausalLM.from_pretrained(disk / "made").eval()
    tokens = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        assert torch.equal(made(tokens).logits, model(tokens).logits)
