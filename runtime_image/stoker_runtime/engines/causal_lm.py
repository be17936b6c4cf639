"""The lean engine: decoders of the Llama family without Transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stoker_runtime.contract import EngineName
from stoker_runtime.engines.causal_lm_cache import SlotCache
from stoker_runtime.engines.causal_lm_config import DecoderConfig
from stoker_runtime.engines.causal_lm_model import Decoder
from stoker_runtime.engines.causal_lm_rotary import RotaryTable
from stoker_runtime.engines.causal_lm_weights import DecoderWeights


class CausalLM:
    """A `TextEngine` over mapped weights; building it costs milliseconds and copies nothing."""

    name = EngineName.CAUSAL_LM

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        *,
        slots: int,
        context_tokens: int,
        eos_ids: frozenset[int],
    ) -> None:
        self.slots = slots
        self.context_tokens = context_tokens
        self.vocab_size = config.vocab_size
        self.eos_ids = eos_ids
        rotary = RotaryTable.build(
            context_tokens, config.head_size, config.rope_theta, config.rope_scaling
        )
        self._decoder = Decoder(config, weights, rotary)
        self._cache = SlotCache(config, slots, context_tokens, weights.dtype)

    @torch.inference_mode()
    def prefill(self, slot: int, ids: Sequence[int], start: int, *, last: bool) -> Tensor | None:
        """Reads `ids` at `start...` into the slot; with `last`, logits `[vocab_size]` follow."""
        positions = torch.arange(start, start + len(ids))
        step = self._cache.prefill(slot, start, len(ids))
        hidden = self._decoder.hidden(torch.tensor(ids), positions, step)
        return self._decoder.logits(hidden[-1:])[0] if last else None

    @torch.inference_mode()
    def decode(
        self, slots: Sequence[int], tokens: Sequence[int], positions: Sequence[int]
    ) -> Tensor:
        """Reads one token into each slot; logits `[len(slots), vocab_size]` follow."""
        step = self._cache.decode(slots, positions)
        hidden = self._decoder.hidden(torch.tensor(tokens), torch.tensor(positions), step)
        return self._decoder.logits(hidden)

    def close(self) -> None:
        """Lets go of weights and cache."""
        del self._decoder, self._cache
