"""Small random checkpoints of every family, written by Transformers, which is the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,  # logits far enough apart for greedy answers to be stable
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, head_dim=8, tie_word_embeddings=True),
    "llama3": LlamaConfig(
        **SHAPE, head_dim=16, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True
    ),
    "mistral": MistralConfig(**SHAPE, head_dim=8, sliding_window=11),
    "qwen2": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2-windows": Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}

MakeCheckpoint = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products on several threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """The directory of a family's checkpoint; made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(FAMILIES[family])
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:  # they begin as zeros and ones
                    torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
            model.save_pretrained(made[family])
        return made[family]

    return make


@pytest.fixture(scope="session")
def reference_of(checkpoint_of: MakeCheckpoint) -> Callable[[str], PreTrainedModel]:
    """A family's model in Transformers, in float32."""
    models: dict[str, PreTrainedModel] = {}

    def load(family: str) -> PreTrainedModel:
        if family not in models:
            path = checkpoint_of(family)
            models[family] = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return models[family]

    return load


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
