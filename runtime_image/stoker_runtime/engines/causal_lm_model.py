"""The forward pass of a decoder of the Llama family, in plain torch operations.

With 16-bit weights the residual stream, the norms and the best logits are float32: that takes
fewer operations than rounding after each step, and lies closer to what the weights say. In
float32 the order of operations is that of Transformers.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stoker_runtime.engines.causal_lm_config import DecoderConfig
from stoker_runtime.engines.causal_lm_rotary import RotaryTable, rotate
from stoker_runtime.engines.causal_lm_weights import DecoderWeights, Layer

EXACT_LOGITS = 8  # the best of each row; a rounding moves a logit by less than one of 256


class Attention(Protocol):
    """Stores new keys and values of a layer and attends over what its slots hold."""

    def attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor: ...


class RootMeanSquareNorm:
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467), in float32."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = torch.tensor([epsilon])

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Normalises the last dimension."""
        x = x.float()
        length = torch.linalg.vector_norm(x, 2, -1, keepdim=True)
        scale = torch.addcmul(self._epsilon, length, length, value=1 / x.shape[-1]).rsqrt_()
        return (x * scale).mul_(weight)


class Decoder:
    """Tokens and positions in, hidden states or logits out; holds no state of a generation."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, rotary: RotaryTable) -> None:
        self._config = config
        self._weights = weights
        self._rotary = rotary
        self._norm = RootMeanSquareNorm(config.norm_epsilon)

    def hidden(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """tokens and positions `[n]` -> hidden states `[n, hidden_size]`."""
        x = functional.embedding(tokens, self._weights.embedding).float()
        cos = self._rotary.cos[positions].unsqueeze_(1)
        signed_sin = self._rotary.signed_sin[positions].unsqueeze_(1)
        for number, layer in enumerate(self._weights.layers):
            x = x + self._attention(number, layer, x, cos, signed_sin, attention)
            x = x + self._mlp(layer, x)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden `[n, hidden_size]` -> float32 logits `[n, vocab_size]`.

        A 16-bit product leaves ties among the best logits, which would make a greedy answer
        depend on the order of the vocabulary; so these few are computed again without rounding.
        """
        normed = self._norm(hidden, self._weights.norm)
        logits = self._weights.head(normed)
        if logits.dtype is torch.float32:
            return logits
        logits = logits.float()
        best = logits.topk(min(EXACT_LOGITS, logits.shape[-1])).indices
        rows = self._weights.head.weights[0][best].float()
        return logits.scatter_(-1, best, torch.matmul(rows, normed.unsqueeze(-1)).squeeze(-1))

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
