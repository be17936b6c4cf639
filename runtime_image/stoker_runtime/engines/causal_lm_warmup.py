"""A tiny decoder that runs once in a blank worker, so that no request pays for first uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stoker_runtime.contract import Sampling
from stoker_runtime.engines.causal_lm import CausalLM
from stoker_runtime.engines.causal_lm_config import parse_config
from stoker_runtime.engines.causal_lm_weights import bind, expected_names
from stoker_runtime.engines.linear import linear_for
from stoker_runtime.generation.sampler import Sampler

WIDTH, INNER, HEADS, VOCAB, CONTEXT = 64, 128, 4, 512, 1024
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
PROMPT = tuple(range(8))


@dataclass(frozen=True, slots=True)
class _Constants:
    """Weights that all have the same value."""

    dtype: torch.dtype
    names: Sequence[str]

    def tensor(self, name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(WIDTH, dtype=self.dtype)
        rows = VOCAB if "embed" in name else INNER if "gate" in name or "up" in name else WIDTH
        return torch.full((rows, INNER if "down" in name else WIDTH), 0.01, dtype=self.dtype)

    def fused(self, names: Sequence[str]) -> Tensor | None:
        return torch.cat([self.tensor(name) for name in names])


def warm_up_decoder() -> None:
    """Runs prefill, a lone step, a batched step and the sampler in the types of checkpoints."""
    config = parse_config(CONFIG)
    sampler = Sampler(Sampling(top_p=0.9), PROMPT, ())
    for dtype in (torch.float32, torch.bfloat16):
        weights = bind(config, _Constants(dtype, expected_names(config)), linear_for(dtype))
        engine = CausalLM(
            config, weights, slots=3, context_tokens=CONTEXT, eos_ids=frozenset({VOCAB - 1})
        )
        for slot in range(3):
            engine.prefill(slot, PROMPT, 0, last=True)
        engine.decode([0], [1], [len(PROMPT)])
        logits = engine.decode([0, 1, 2], [1, 2, 3], [len(PROMPT) + 1, len(PROMPT), len(PROMPT)])
        sampler.choose(logits[0], len(PROMPT))
        engine.close()
