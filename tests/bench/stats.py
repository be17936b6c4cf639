"""Medians and quantiles of raw samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 1e-9  # 0.99 * 200 is a hair above 198


@dataclass(frozen=True)
class Summary:
    n: int
    min: float
    median: float
    p90: float
    p99: float
    max: float


def summarise(samples: Sequence[float]) -> Summary:
    """Order statistics of at least one sample."""
    return Summary(
        n=len(samples),
        min=min(samples),
        median=statistics.median(samples),
        p90=quantile(samples, 0.90),
        p99=quantile(samples, 0.99),
        max=max(samples),
    )


def quantile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least a share `q` of all do not exceed: never interpolated,
    so a p99 is a time that was really measured."""
    assert samples
    assert 0 < q <= 1
    rank = math.ceil(q * len(samples) - ROUNDING)
    return sorted(samples)[max(rank, 1) - 1]


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)
