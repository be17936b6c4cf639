"""Rotary position embedding (Su et al., arXiv:2104.09864) as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from stoker_runtime.errors import CheckpointRejected


class RopeKind(StrEnum):
    DEFAULT = "default"
    LINEAR = "linear"
    LLAMA3 = "llama3"


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How frequencies are stretched for contexts longer than those of the first training."""

    kind: RopeKind
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_context_tokens: int = 8192

    @classmethod
    def parse(cls, rope: Mapping[str, Any]) -> RopeScaling | None:
        """Reads `rope_parameters`; raises CheckpointRejected where a key is missing."""
        kind = RopeKind(rope.get("rope_type", "default"))
        if kind is RopeKind.DEFAULT:
            return None
        try:
            if kind is RopeKind.LINEAR:
                return cls(kind, float(rope["factor"]))
            return cls(
                kind,
                float(rope["factor"]),
                float(rope["low_freq_factor"]),
                float(rope["high_freq_factor"]),
                int(rope["original_max_position_embeddings"]),
            )
        except KeyError as error:
            raise CheckpointRejected(
                f"config.json: the {kind} rotary scaling lacks {error}; fetch the checkpoint again",
                code="checkpoint_config_invalid",
                param="rope_parameters",
            ) from error


@dataclass(frozen=True, slots=True)
class RotaryTable:
    """Cosines and signed sines of every position.

    `rotate(x) = x * cos + roll(x, half) * signed_sin` equals the usual
    `x * cos + concat(-x2, x1) * sin` bit for bit and saves two operations.
    """

    cos: Tensor  # [positions, head_size], float32
    signed_sin: Tensor  # [positions, head_size]; the first half carries the minus sign

    @classmethod
    def build(
        cls,
        positions: int,
        head_size: int,
        theta: float,
        scaling: RopeScaling | None,
    ) -> RotaryTable:
        """Computes all angles in float32, as Transformers does."""
        half = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
        frequencies = _scale(1.0 / theta**half, scaling)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
        cos, sin = angles.cos(), angles.sin()
        return cls(torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))


def _scale(frequencies: Tensor, scaling: RopeScaling | None) -> Tensor:
    """Frequencies after scaling; the llama3 rule is that of Llama 3.1's reference code."""
    if scaling is None:
        return frequencies
    if scaling.kind is RopeKind.LINEAR:
        return frequencies / scaling.factor
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    context = scaling.original_context_tokens
    wavelengths = 2 * math.pi / frequencies
    smooth = (context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < context / high, frequencies, scaled)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Rotates heads `[tokens, heads, head_size]` by tables `[tokens, 1, head_size]`."""
    return (x * cos).add_(x.roll(x.shape[-1] // 2, -1).mul_(signed_sin))
