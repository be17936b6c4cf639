"""Plans which inputs run together, and turns token vectors into unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stoker_runtime.engines.embedding_config import Pooling

MAX_BATCH_TOKENS = 8192  # padded tokens of one forward: bounds its memory
MAX_BATCH_ROWS = 64


def plan(lengths: Sequence[int]) -> list[list[int]]:
    """Groups inputs, given their token counts, into batches of like lengths.

    Each index appears once. A batch holds at most `MAX_BATCH_ROWS` rows and, padded to its
    longest, `MAX_BATCH_TOKENS` tokens, unless one input alone is longer.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = (
            batches
            and len(batches[-1]) < MAX_BATCH_ROWS
            and (len(batches[-1]) + 1) * longest <= MAX_BATCH_TOKENS
        )
        if fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = lengths[index]
    return batches


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids `[rows, longest]`, padded with 0 behind, and the mask of what is not padding."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < lengths[:, None]


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Token vectors `[rows, tokens, hidden]` to one vector a row, in float32."""
    hidden = hidden.float()
    match pooling:
        case Pooling.MEAN:
            kept = mask[..., None]
            return (hidden * kept).sum(1) / kept.sum(1)
        case Pooling.CLS:
            return hidden[:, 0]
        case Pooling.MAX:
            return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)
        case Pooling.LAST:
            return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]


def unit(vectors: Tensor, dimensions: int | None) -> Tensor:
    """Vectors of length 1, cut to the first `dimensions` before (Kusupati et al., Matryoshka
    representation learning, 2022)."""
    return functional.normalize(vectors[:, :dimensions], dim=-1)
