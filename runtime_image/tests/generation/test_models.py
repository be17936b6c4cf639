"""Loading a text model: phases, the choice of an engine, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from stoker_runtime.contract import EngineArgs, EngineName, Tier
from stoker_runtime.errors import CheckpointRejected, InvalidRequest
from stoker_runtime.models import load_text_model

from .conftest import StartLoop, byte_tokenizer, engine_and_tokenizer

Phases = list[tuple[str, float, Tier | None, int, Mapping[str, float]]]


def load(checkpoint: Path, engine: EngineName = EngineName.AUTO, **args: Any) -> Phases:
    phases: Phases = []
    load_text_model(checkpoint, engine, EngineArgs(**args), lambda *phase: phases.append(phase))
    return phases


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def test_two_phases_with_their_bytes_and_parts(checkpoint: Path) -> None:
    phases = load(checkpoint)
    assert [name for name, *_ in phases] == ["load", "init"]
    _, _, tier, read_bytes, _ = phases[0]
    assert tier in (Tier.DRAM, Tier.SSD)
    assert read_bytes == (checkpoint / "model.safetensors").stat().st_size
    for _, duration_ms, _, _, details in phases:
        assert sum(details.values()) <= duration_ms
        assert all(name.endswith("_ms") for name in details)
    parts = {part for *_, details in phases for part in details}
    assert {"open_ms", "attach_ms", "populate_ms", "tokenizer_ms", "engine_ms"} <= parts


async def test_other_architectures_go_to_transformers(tmp_path: Path, start: StartLoop) -> None:
    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=258, n_embd=24, n_layer=2, n_head=3, n_positions=128, initializer_range=0.4,
        eos_token_id=256, bos_token_id=257,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    parts = engine_and_tokenizer(tmp_path, EngineName.AUTO)
    assert parts[0].name is EngineName.TRANSFORMERS
    found = await (await start(parts)).answer("Hello", max_tokens=12)
    ids = torch.tensor([found.prompt_ids])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert found.tokens == expected[0, 5:].tolist()


def test_the_lean_engine_is_chosen_where_it_fits(checkpoint: Path) -> None:
    assert engine_and_tokenizer(checkpoint, EngineName.AUTO)[0].name is EngineName.CAUSAL_LM


def test_a_context_beyond_the_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InvalidRequest, match="max_model_len is 129") as caught:
        load(checkpoint, max_model_len=129)
    assert caught.value.error.param == "max_model_len"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_the_next_step(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointRejected) as caught:
        load(copy)
    assert name.split(".")[-1] in caught.value.error.message
    assert "push" in caught.value.error.message


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_config_that_is_no_object_is_refused(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(CheckpointRejected) as caught:
        load(copy)
    assert caught.value.error.code == "checkpoint_config_invalid"


@pytest.mark.parametrize("engine", [EngineName.CAUSAL_LM, EngineName.TRANSFORMERS])
def test_truncated_weights_are_refused(copy: Path, engine: EngineName) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointRejected) as caught:
        load(copy, engine)
    assert caught.value.error.code == "data_truncated"
    assert "model.safetensors" in caught.value.error.message


def test_pickles_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    torch.save(load_file(weights), copy / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointRejected, match="stoker_loader convert SOURCE") as caught:
        load(copy)
    assert caught.value.error.code == "pickle_refused"


@pytest.mark.parametrize("engine", [EngineName.CAUSAL_LM, EngineName.TRANSFORMERS])
def test_a_model_of_no_known_kind_is_refused(copy: Path, engine: EngineName) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(CheckpointRejected, match="NoSuchModel") as caught:
        load(copy, engine)
    assert caught.value.error.code == "architecture_unsupported"


def test_missing_tensors_are_named(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    for engine in (EngineName.CAUSAL_LM, EngineName.TRANSFORMERS):
        with pytest.raises(CheckpointRejected, match=r"model\.layers\.2\.") as caught:
            load(copy, engine)
        assert caught.value.error.code == "checkpoint_incomplete"
