"""What the lean decoder refuses, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import stoker_loader
from stoker_runtime.engines.causal_lm_config import parse_config, supports
from stoker_runtime.engines.causal_lm_weights import bind, expected_names
from stoker_runtime.engines.linear import linear_for
from stoker_runtime.errors import CheckpointRejected
from stoker_runtime.weights import eos_ids, read_json


@pytest.fixture
def config(checkpoint_of: Callable[[str], Path]) -> dict[str, Any]:
    return read_json(checkpoint_of("llama") / "config.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not of the Llama family"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "scaled by 'yarn'"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "only a part of each head"),
    ],
)
def test_what_it_cannot_compute_is_left_to_transformers(
    config: dict[str, Any], change: dict[str, Any], reason: str
) -> None:
    assert supports(config)
    assert not supports(config | change)
    with pytest.raises(CheckpointRejected, match=reason) as caught:
        parse_config(config | change)
    assert caught.value.error.code == "architecture_unsupported"
    assert "engine: transformers" in caught.value.error.message


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", None), ("vocab_size", "many"), ("num_hidden_layers", 0), ("head_dim", -1)],
)
def test_a_nonsensical_config_names_its_key(config: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(CheckpointRejected) as caught:
        parse_config(config | {key: value})
    assert caught.value.error.code == "checkpoint_config_invalid"
    assert caught.value.error.param == key


def test_a_config_without_an_architecture_says_what_to_do(config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointRejected, match="save_pretrained"):
        parse_config(config | {"architectures": []})


def test_older_configs_write_the_rotary_base_elsewhere(config: dict[str, Any]) -> None:
    old = {key: value for key, value in config.items() if key != "rope_parameters"}
    scaled = old | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    parsed = parse_config(scaled)
    assert parsed.rope_theta == 5e5
    assert parsed.rope_scaling is not None
    assert parsed.rope_scaling.factor == 2.0


def test_missing_tensors_are_named(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(checkpoint_of("llama") / "model.safetensors")
    lost = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
    save_file({n: t for n, t in tensors.items() if n not in lost}, tmp_path / "model.safetensors")
    error = _rejection(checkpoint_of("llama"), tmp_path)
    assert error.error.code == "checkpoint_incomplete"
    assert error.error.details == {"missing": lost}


def test_weights_of_another_model_are_noticed(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors = load_file(checkpoint_of("llama") / "model.safetensors")
    save_file(tensors | {name: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    error = _rejection(checkpoint_of("llama"), tmp_path)
    assert error.error.code == "checkpoint_mismatch"
    assert error.error.details["tensor"] == name


def test_two_types_in_one_checkpoint_are_refused(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    tensors = load_file(checkpoint_of("llama") / "model.safetensors")
    save_file(tensors | {name: tensors[name].bfloat16()}, tmp_path / "model.safetensors")
    assert "bfloat16" in _rejection(checkpoint_of("llama"), tmp_path).error.message


def test_expected_names_are_those_that_transformers_writes(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    path = checkpoint_of(family)
    written = load_file(path / "model.safetensors")
    assert sorted(expected_names(parse_config(read_json(path / "config.json")))) == sorted(written)


@pytest.mark.parametrize(
    ("config_value", "generation_value", "expected"),
    [(3, [4, 5], {4, 5}), (3, None, {3}), ([3, 6], None, {3, 6}), (None, None, set())],
)
def test_the_generation_config_says_what_ends_an_answer(
    config_value: Any, generation_value: Any, expected: set[int]
) -> None:
    found = eos_ids({"eos_token_id": config_value}, {"eos_token_id": generation_value})
    assert found == expected


def _rejection(config_from: Path, weights_from: Path) -> CheckpointRejected:
    config = parse_config(read_json(config_from / "config.json"))
    with stoker_loader.open(weights_from) as source, pytest.raises(CheckpointRejected) as caught:
        bind(config, source, linear_for(torch.float32))
    return caught.value
