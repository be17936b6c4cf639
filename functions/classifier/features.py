"""Text to numbers, the same way when the weights are made and when they are used."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

LABELS = ("de", "en", "es", "fr", "it")
BUCKETS = 4096
GRAM_SIZES = (1, 2, 3)


def features(text: str) -> Tensor:
    """How often each hashed letter sequence occurs: `[BUCKETS]` float32 of length 1 (or 0)."""
    counts = torch.zeros(BUCKETS)
    for word in "".join(c if c.isalpha() else " " for c in text.lower()).split():
        spaced = f" {word} "
        for size in GRAM_SIZES:
            for start in range(len(spaced) - size + 1):
                counts[zlib.crc32(spaced[start : start + size].encode()) % BUCKETS] += 1
    return torch.nn.functional.normalize(counts.sqrt(), dim=0)
