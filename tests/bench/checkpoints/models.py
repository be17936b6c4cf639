"""Folders of models that a function can be deployed with, and new weights for them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.loader.safetensors_file import NOT_TINY, write_random
from tests.bench.loader.shapes import LLAMA_1B, Llama
from tests.bench.loader.store import SEED, SMOLLM2

SIZES = ("smollm2", "llama_1b")
WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
HEAD_SIZE = 64
CONTEXT_TOKENS = 8192
# Nothing but what was asked: a prompt of few tokens, so that the start is measured.
TEMPLATE = "{{ messages[-1]['content'] }}"
RENEWED_EVERY_BYTES = 1 << 16


def servable(size: str, models: Path, data: Path, tell: Callable[[str], None]) -> Path:
    """The folder of the model of this size (one of `SIZES`): the real SmolLM2 below `models`, or
    one that is made below `data` and kept between runs."""
    real = models / SMOLLM2
    if size == "smollm2":
        return real
    folder = data / size
    if not folder.exists():
        tell(f"making {size} ...")
        data.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=".making-", dir=data))
        try:
            make(making, {"llama_1b": LLAMA_1B}[size], real)
            making.rename(folder)
        except BaseException:
            shutil.rmtree(making)
            raise
    return folder


def make(folder: Path, shape: Llama, tokenizer: Path) -> None:
    """Fills `folder` with a model of random weights that reads text as the one in `tokenizer`."""
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "config.json").write_text(json.dumps(config_of(shape), indent=2))
    write_random(folder / WEIGHTS, shape.shapes(), SEED, NOT_TINY)
    os.sync()  # nothing of it is written back while something is measured


def config_of(shape: Llama) -> dict[str, object]:
    """The config.json of a dense model of these shapes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.queries // HEAD_SIZE,
        "num_key_value_heads": shape.keys // HEAD_SIZE,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT_TOKENS,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def renew(weights: Path, number: int) -> None:
    """Gives a bfloat16 file weights that no other `number` has, in every 64 KiB of it, which answer
    as the old ones do: of one weight each the last bit."""
    assert 0 <= number < RENEWED_EVERY_BYTES // 2
    with weights.open("r+b") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        first = (
            8 + header_bytes + 2 * number
        )  # the low byte of a weight: the numbers are little-endian
        for at in range(first, weights.stat().st_size, RENEWED_EVERY_BYTES):
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))
