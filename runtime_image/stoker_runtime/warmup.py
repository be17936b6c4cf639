"""One tiny forward, so that a first request does not pay for kernels that are made on first use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stoker_runtime.engines.causal_lm_warmup import warm_up_decoder

_HIDDEN, _HEADS, _TOKENS = 64, 4, 8


@torch.inference_mode()
def warm_up() -> None:
    """Runs the operations of a Llama-like layer in the types that checkpoints have."""
    for dtype in (torch.float32, torch.bfloat16):
        _prefill_and_decode(dtype)
    warm_up_decoder()


def _prefill_and_decode(dtype: torch.dtype) -> None:
    x = torch.ones(_TOKENS, _HIDDEN, dtype=dtype)
    for tokens in (_TOKENS, 1):
        x = _layer(x[:tokens])


def _layer(x: Tensor) -> Tensor:
    square = torch.full((_HIDDEN, _HIDDEN), 0.01, dtype=x.dtype)
    normed = functional.rms_norm(x.float(), (_HIDDEN,)).to(x.dtype)
    q, k, v = functional.linear(normed, square.repeat(3, 1)).chunk(3, dim=-1)
    q, k, v = (t.view(1, len(x), _HEADS, -1).transpose(1, 2) for t in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=len(x) > 1)
    x = x + functional.linear(mixed.transpose(1, 2).reshape(len(x), _HIDDEN), square)
    gate, up = functional.linear(x, square), functional.linear(x, square)
    x = x + functional.linear(functional.silu(gate) * up, square)
    torch.softmax(x.float(), dim=-1).argmax(dim=-1)
    return x
