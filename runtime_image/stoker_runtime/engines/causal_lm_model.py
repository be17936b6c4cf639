"""The forward pass of a decoder of the Llama family, in plain torch operations.

Roundings happen where Transformers has them, so that greedy answers agree in bfloat16 too.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stoker_runtime.engines.causal_lm_config import DecoderConfig
from stoker_runtime.engines.causal_lm_rotary import RotaryTable, rotate
from stoker_runtime.engines.causal_lm_weights import DecoderWeights, Layer


class Attention(Protocol):
    """Stores new keys and values of a layer and attends over what its slots hold."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor: ...


class RootMeanSquareNorm:
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467), in float32, rounded before the weight."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = torch.tensor([epsilon])

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Normalises the last dimension."""
        wide = x.float()
        length = torch.linalg.vector_norm(wide, 2, -1, keepdim=True)
        scale = torch.addcmul(self._epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
        normed = wide * scale if wide is x else wide.mul_(scale)
        return normed.to(x.dtype).mul_(weight)


class Decoder:
    """Tokens and positions in, hidden states or logits out; holds no state of a generation."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, rotary: RotaryTable) -> None:
        self._config = config
        self._weights = weights
        self._rotary = rotary
        self._norm = RootMeanSquareNorm(config.norm_epsilon)

    def hidden(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """tokens and positions `[n]` -> hidden states `[n, hidden_size]`."""
        x = functional.embedding(tokens, self._weights.embedding)
        cos = self._rotary.cos[positions].unsqueeze_(1)
        signed_sin = self._rotary.signed_sin[positions].unsqueeze_(1)
        for number, layer in enumerate(self._weights.layers):
            x = x + self._attention(number, layer, x, cos, signed_sin, attention)
            x = x + self._mlp(layer, x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden `[n, hidden_size]` -> logits `[n, vocab_size]`, in the weights' type."""
        return self._weights.head(self._norm(hidden, self._weights.norm))

    def _attention(
        self,
        number: int,
        layer: Layer,
        x: Tensor,
        cos: Tensor,
        signed_sin: Tensor,
        attention: Attention,
    ) -> Tensor:
        c = self._config
        qkv = layer.qkv(self._norm(x, layer.input_norm))
        qk_width = c.query_width + c.key_width
        qk = qkv[:, :qk_width].view(len(x), -1, c.head_size)
        if layer.head_norm is not None:
            qk = self._norm(qk, layer.head_norm)
        qk = rotate(qk, cos, signed_sin)
        # Rotated keys go back beside the values, so that one write stores both.
        qkv[:, c.query_width : qk_width] = qk[:, c.query_heads :].flatten(1)
        mixed = attention.attend(number, qk[:, : c.query_heads], qkv[:, c.query_width :])
        return layer.output(mixed)

    def _mlp(self, layer: Layer, x: Tensor) -> Tensor:
        gate, up = layer.gate_up(self._norm(x, layer.mlp_norm)).chunk(2, -1)
        return layer.down(functional.silu(gate).mul_(up))
